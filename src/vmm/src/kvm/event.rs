//! Eventfds, as the rest of the system sees them.

use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

/// The eventfd's descriptor.
pub(super) fn descriptor(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: an `EventFd` owns its descriptor for all its life, and it is borrowed here.
    #[allow(unsafe_code)]
    unsafe {
        BorrowedFd::borrow_raw(event.as_raw_fd())
    }
}
