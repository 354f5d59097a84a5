"""Between machines: sessions and resumable transfers over gRPC. It knows frames and identities, no job and no algorithm."""
