//! Where things lie in a checkout.

use std::env;
use std::path::{Path, PathBuf};

/// The checkout.
pub fn root() -> PathBuf {
    // Cargo says where the running package lies; a binary that was started by hand knows where it was built.
    let package =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.parent().map_or_else(|| package.clone(), Path::to_owned)
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The triple that `.cargo/config.toml` builds for.
pub const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The program under test: `ALLOD` in the environment, else the release build, else the debug build.
pub fn allod() -> PathBuf {
    if let Some(path) = env::var_os("ALLOD") {
        return path.into();
    }
    let release = release_binary();
    if release.exists() {
        release
    } else {
        target().join(TRIPLE).join("debug/allod")
    }
}

/// What `cargo build --release` leaves.
pub fn release_binary() -> PathBuf {
    target().join(TRIPLE).join("release/allod")
}

/// The small guest image: `ALLOD_GUEST_IMAGE` in the environment, else where `cargo xtask guest-image` puts it.
pub fn guest_image() -> PathBuf {
    env::var_os("ALLOD_GUEST_IMAGE").map_or_else(|| target().join("guest/allod-guest.qcow2"), PathBuf::from)
}

/// The kernel that boots on this host's KVM: `ALLOD_KVM_LINUX` in the environment, else where `cargo xtask kvm-linux` puts it.
pub fn kvm_linux() -> PathBuf {
    env::var_os(crate::kvm::LINUX).map_or_else(|| target().join("kvm-linux/linux"), PathBuf::from)
}
