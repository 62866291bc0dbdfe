//! Hands SQLite's file operations to the simulated disk: the only foreign-function code of this room, in tests alone.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::size_of;
use std::ptr;
use std::slice;
use std::sync::Once;

use rusqlite::ffi::{self, sqlite3_file, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs};

use super::sqlite::{self, Handle};

/// The name under which SQLite knows this file layer.
pub(crate) const VFS: &str = "allod-sim";
const NAME: &CStr = c"allod-sim";

/// What SQLite allocates `szOsFile` bytes for: its own header, then our handle.
#[repr(C)]
struct File {
    base: sqlite3_file,
    handle: *mut Handle,
}

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

/// Makes the file layer known to SQLite, once.
pub(crate) fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a null name asks for the default VFS, which SQLite keeps for the life of the process. Copying the
        // struct takes over its functions for time, sleep and randomness, which use no `pAppData`.
        let default = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
        assert!(!default.is_null());
        // SAFETY: checked just above, and nobody writes to it.
        let default: sqlite3_vfs = unsafe { *default };
        let vfs = Box::new(sqlite3_vfs {
            szOsFile: size_of::<File>() as c_int,
            mxPathname: 1024,
            pNext: ptr::null_mut(),
            zName: NAME.as_ptr(),
            xOpen: Some(open),
            xDelete: Some(delete),
            xAccess: Some(access),
            xFullPathname: Some(full_pathname),
            ..default
        });
        // SAFETY: the struct is leaked, as SQLite keeps it, and every function in it has SQLite's signature.
        let code = unsafe { ffi::sqlite3_vfs_register(Box::into_raw(vfs), 0) };
        assert_eq!(code, ffi::SQLITE_OK);
    });
}

fn code(result: Result<(), c_int>) -> c_int {
    result.err().unwrap_or(ffi::SQLITE_OK)
}

/// The path that SQLite passes.
///
/// # Safety
/// `name` is null or a string that lives through the call.
unsafe fn path<'a>(name: *const c_char) -> Result<&'a str, c_int> {
    if name.is_null() {
        return Err(ffi::SQLITE_CANTOPEN);
    }
    // SAFETY: not null; the caller vouches for the rest.
    unsafe { CStr::from_ptr(name) }
        .to_str()
        .map_err(|_| ffi::SQLITE_CANTOPEN)
}

/// The handle in a file that `open` has filled.
///
/// # Safety
/// `file` was passed to `open`, which succeeded, and not yet to `close`; SQLite uses a file on one thread at a time.
unsafe fn handle<'a>(file: *mut sqlite3_file) -> &'a mut Handle {
    // SAFETY: `open` stored a leaked box, and only `close` takes it back.
    unsafe { &mut *(*file.cast::<File>()).handle }
}

unsafe extern "C" fn open(
    _: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite passes `szOsFile` writable bytes; without methods it does not call `close` if this fails.
    unsafe { (*file).pMethods = ptr::null() };
    // SAFETY: SQLite passes a name that lives as long as the file.
    let opened =
        unsafe { path(name) }.and_then(|path| sqlite::open(path, flags & ffi::SQLITE_OPEN_CREATE != 0));
    match opened {
        Ok(handle) => {
            let new = File {
                base: sqlite3_file { pMethods: &METHODS },
                handle: Box::into_raw(Box::new(handle)),
            };
            // SAFETY: as above; the bytes are not initialised, so nothing is dropped by writing.
            unsafe { ptr::write(file.cast::<File>(), new) };
            if !out_flags.is_null() {
                // SAFETY: not null, and SQLite's to write to.
                unsafe { *out_flags = flags };
            }
            ffi::SQLITE_OK
        }
        Err(code) => code,
    }
}

unsafe extern "C" fn delete(_: *mut sqlite3_vfs, name: *const c_char, _sync_dir: c_int) -> c_int {
    // SAFETY: SQLite passes a string.
    code(unsafe { path(name) }.and_then(sqlite::delete))
}

unsafe extern "C" fn access(_: *mut sqlite3_vfs, name: *const c_char, _: c_int, out: *mut c_int) -> c_int {
    // SAFETY: SQLite passes a string, and an integer to write to.
    code(
        unsafe { path(name) }
            .and_then(sqlite::exists)
            .map(|exists| unsafe { *out = c_int::from(exists) }),
    )
}

unsafe extern "C" fn full_pathname(
    _: *mut sqlite3_vfs,
    name: *const c_char,
    size: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: SQLite passes a string.
    let Ok(path) = (unsafe { path(name) }) else {
        return ffi::SQLITE_CANTOPEN;
    };
    if path.len() >= size as usize {
        return ffi::SQLITE_CANTOPEN;
    }
    // SAFETY: `out` has `size` bytes, which the path and its final zero fit into; the two do not overlap.
    unsafe {
        ptr::copy_nonoverlapping(path.as_ptr().cast(), out, path.len());
        *out.add(path.len()) = 0;
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: `open` leaked this box, and SQLite closes a file once.
    let handle = unsafe { Box::from_raw((*file.cast::<File>()).handle) };
    code(handle.close())
}

unsafe extern "C" fn read(
    file: *mut sqlite3_file,
    buffer: *mut c_void,
    count: c_int,
    offset: sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite passes an open file, and a buffer of `count` bytes that it has initialised or owns.
    let (handle, buffer) = unsafe {
        (
            handle(file),
            slice::from_raw_parts_mut(buffer.cast::<u8>(), count as usize),
        )
    };
    match handle.read(offset as usize, buffer) {
        Ok(filled) if filled == buffer.len() => ffi::SQLITE_OK,
        Ok(filled) => {
            buffer[filled..].fill(0);
            ffi::SQLITE_IOERR_SHORT_READ
        }
        Err(code) => code,
    }
}

unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    data: *const c_void,
    count: c_int,
    offset: sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite passes an open file and `count` bytes.
    let (handle, data) = unsafe {
        (
            handle(file),
            slice::from_raw_parts(data.cast::<u8>(), count as usize),
        )
    };
    code(handle.write(offset as usize, data).map(drop))
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, size: sqlite3_int64) -> c_int {
    // SAFETY: SQLite passes an open file.
    code(unsafe { handle(file) }.truncate(size as usize))
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, _flags: c_int) -> c_int {
    // SAFETY: SQLite passes an open file.
    code(unsafe { handle(file) }.sync())
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, out: *mut sqlite3_int64) -> c_int {
    // SAFETY: SQLite passes an open file, and an integer to write to.
    code(
        unsafe { handle(file) }
            .file_size()
            .map(|size| unsafe { *out = size as sqlite3_int64 }),
    )
}

unsafe extern "C" fn lock(file: *mut sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite passes an open file.
    code(unsafe { handle(file) }.lock(level))
}

unsafe extern "C" fn unlock(file: *mut sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite passes an open file.
    code(unsafe { handle(file) }.unlock(level))
}

unsafe extern "C" fn check_reserved_lock(file: *mut sqlite3_file, out: *mut c_int) -> c_int {
    // SAFETY: SQLite passes an open file, and an integer to write to.
    code(
        unsafe { handle(file) }
            .check_reserved_lock()
            .map(|held| unsafe { *out = c_int::from(held) }),
    )
}

unsafe extern "C" fn file_control(_: *mut sqlite3_file, _: c_int, _: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector_size(_: *mut sqlite3_file) -> c_int {
    4096
}

unsafe extern "C" fn device_characteristics(_: *mut sqlite3_file) -> c_int {
    // As SQLite's own file layer: a write harms no byte beside it.
    ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

unsafe extern "C" fn shm_map(
    file: *mut sqlite3_file,
    index: c_int,
    size: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    // SAFETY: SQLite passes an open file.
    let region = unsafe { handle(file) }.shm_map(index as usize, size as usize, extend != 0);
    // SAFETY: SQLite passes a pointer to write to. The region lives for ever, and it is made of atomics, which may be
    // written to through shared references.
    code(
        region
            .map(|region| unsafe { *out = region.map_or(ptr::null_mut(), |region| region.as_ptr().cast()) }),
    )
}

unsafe extern "C" fn shm_lock(file: *mut sqlite3_file, offset: c_int, count: c_int, flags: c_int) -> c_int {
    // SAFETY: SQLite passes an open file.
    code(unsafe { handle(file) }.shm_lock(offset as u32, count as u32, flags))
}

unsafe extern "C" fn shm_barrier(_: *mut sqlite3_file) {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}

unsafe extern "C" fn shm_unmap(file: *mut sqlite3_file, _delete: c_int) -> c_int {
    // SAFETY: SQLite passes an open file.
    code(unsafe { handle(file) }.shm_unmap())
}
