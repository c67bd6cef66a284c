"""InstructZero, the service: finds the instruction that makes a black-box model do your task best."""
