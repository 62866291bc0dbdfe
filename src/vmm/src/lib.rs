//! The room vmm.
