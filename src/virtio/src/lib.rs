//! The room virtio.
