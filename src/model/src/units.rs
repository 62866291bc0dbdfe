//! Sizes in bytes, under the names that OpenStack's APIs use for them.

/// One kibibyte in bytes.
pub const KIB: u64 = 1024;
/// One mebibyte in bytes (Nova's unit of memory).
pub const MIB: u64 = 1024 * KIB;
/// One gibibyte in bytes (Nova's and Cinder's unit of disks).
pub const GIB: u64 = 1024 * MIB;
