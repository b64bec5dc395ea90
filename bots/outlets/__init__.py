"""Where posts go: one module for each kind of outlet, made by `build_outlet` of `bots.outlets.build`."""
