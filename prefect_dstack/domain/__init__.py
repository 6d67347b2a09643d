"""What a service is, was and shall be: records and decisions, without any I/O."""
