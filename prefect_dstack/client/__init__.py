"""What programs call beside the flows: what is known of services, and services for a while."""
