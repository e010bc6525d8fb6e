"""`ivmix doctor`: what is wrong with an installation, and what to do. Each check yields findings; none raises."""
