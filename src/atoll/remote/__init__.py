"""Between machines: sessions and resumable transfers over gRPC. It knows frames and identities, no job and no algorithm."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # read when gRPC is imported: we say ourselves that a line is lost, and once
