"""Ways to run networks faster that change their answers by more than rounding; nothing here is on by default."""
