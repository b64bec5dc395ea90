"""What several tests need: servers, fakes of services, tiny models, files to damage."""
