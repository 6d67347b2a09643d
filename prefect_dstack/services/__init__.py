"""What is done with services, as flows and the command line need it: deploy, scale, stop, repair, show."""
