"""The processes of a run and the messages between them; no other package uses MPI."""
