"""A model without weights, whose time, memory and failures a request chooses: for tests and CI."""
