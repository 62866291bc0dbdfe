//! Pages of the program that only its start needed.
//!
//! The monitor is a small part of a large program. What the kernel mapped of it on the way (it maps sixteen pages around each that is
//! touched) counts as this process's memory, although little of it is wanted again.

use std::ffi::c_void;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

// SAFETY: the linker defines both for every program; only their addresses are taken.
#[allow(unsafe_code)]
unsafe extern "C" {
    /// Where the program begins, by the linker's word.
    static __executable_start: u8;
    /// Where its code ends; constants lie before it, and all that is written to behind it.
    static etext: u8;
}

/// A page.
const PAGE: usize = 4096;

/// Let go of the program's code and constants. What is touched again is mapped again, from the host's page cache.
pub(super) fn let_go_of_the_program() {
    let start = (&raw const __executable_start).addr();
    let end = (&raw const etext).addr() / PAGE * PAGE;
    let Some(address) = NonNull::new((&raw const __executable_start).cast_mut().cast::<c_void>()) else {
        return;
    };
    if !start.is_multiple_of(PAGE) || end <= start {
        return;
    }
    // SAFETY: the range holds the program's headers, constants and code, which are mapped from its file and written to by nobody:
    // a page of it that is gone comes back from the file as it was.
    #[allow(unsafe_code)]
    let done = unsafe { madvise(address, end - start, MmapAdvise::MADV_DONTNEED) };
    if let Err(error) = done {
        // It only costs memory.
        tracing::debug!(%error, "the program's pages stay mapped");
    }
}
