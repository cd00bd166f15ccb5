//! Recorders that were killed, and folders that nothing can be written to.
