"""Memory and link of a device: the protocol, real ones, virtual ones, and one whose time is only counted."""
