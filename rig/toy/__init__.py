"""The files of the toy model, as transformers saves them; `rig.model.toy` says where they are."""
