"""One module for each resource; `server.app` puts them together."""
