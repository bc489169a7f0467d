"""What this distribution changes of other libraries, a file for each."""
