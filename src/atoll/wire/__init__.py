"""What crosses a network, as bytes: frames of updates and models, checked before anything is allocated; never pickle."""
