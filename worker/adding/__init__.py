"""What `ivmix models add` is given: files, folders and hub repositories, and their parts of a model. No torch."""
