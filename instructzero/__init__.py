"""Find the instruction that makes a black-box language model do your task best."""
