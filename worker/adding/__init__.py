"""What `ivmix models add` is given: files, folders and hub repositories, and which parts of a model they are. No torch."""
