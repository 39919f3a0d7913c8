"""What `sagapost doctor` looks at: tables and server, what lies in the tables, the broker, the code that is to run."""
