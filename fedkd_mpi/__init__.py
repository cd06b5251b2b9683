"""FedKD over MPI: rank 0 is the server, the other ranks are clients, and every exchanged byte is logged."""

__version__ = "0.1.0"
