//! The states of volumes, snapshots and backups.
//!
//! ```text
//!                 bytes made            reserve             attached
//!  creating ─────────────────▶ available ─────▶ reserved, ─────────▶ in-use ──▶ detaching
//!     │                         ▲ │ ▲ ▲  ◀──── attaching               │ ▲         │
//!     │ it failed               │ │ │ │ roll back                      │ └─────────┤ roll back
//!     ▼                         │ │ │ └────────────────────────────────┼───────────┘ detached
//!   error                       │ │ └── awaiting-transfer              │
//!                               │ ▼     (offered; accepted or taken    ▼ (and back; a failure leaves a message)
//!                               │ │      back)                extending, uploading, backing-up
//!                               │ ▼
//!                               │ restoring-backup ──▶ error_restoring
//!                               ▼
//!                            deleting ──▶ gone            (also from error, error_*)
//! ```
//! What has to be done stands beside the state, as the row's [`Task`], for administrators may set states by hand: the reconciler
//! repeats the task's step until it is done, and writes the state after it and the end of the task in one transaction.
//! `backing-up` belongs to a backup's task. All other states change by requests alone.

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};

macro_rules! states {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])+ $state:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[doc = $doc])+ $state,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[$name] = &[$($name::$state),*];

            /// As the API writes it.
            pub fn name(self) -> &'static str {
                match self {
                    $($name::$state => $text,)*
                }
            }

            /// By the API's name.
            pub fn parse(name: &str) -> Option<$name> {
                $name::ALL.iter().copied().find(|state| state.name() == name)
            }
        }

        impl ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(self.name().into())
            }
        }

        impl FromSql for $name {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                $name::parse(value.as_str()?).ok_or(FromSqlError::InvalidType)
            }
        }
    };
}

states! {
    /// A volume's state; see the module.
    Status {
        /// Its bytes are being made.
        Creating = "creating",
        /// Nobody uses it.
        Available = "available",
        /// Someone is about to use it.
        Reserved = "reserved",
        /// It is being given to a server.
        Attaching = "attaching",
        /// It is being taken from a server.
        Detaching = "detaching",
        /// A server has it.
        InUse = "in-use",
        /// An administrator has put it aside.
        Maintenance = "maintenance",
        /// Its bytes are being removed.
        Deleting = "deleting",
        /// It is offered to another project.
        AwaitingTransfer = "awaiting-transfer",
        /// It could not be made.
        Error = "error",
        /// It could not be removed.
        ErrorDeleting = "error_deleting",
        /// A backup is being made of it.
        BackingUp = "backing-up",
        /// A backup is being written to it.
        RestoringBackup = "restoring-backup",
        /// A backup of it failed; set by administrators alone.
        ErrorBackingUp = "error_backing-up",
        /// Its bytes are neither the backup's nor its own.
        ErrorRestoring = "error_restoring",
        /// It is made larger.
        Extending = "extending",
        /// It could not be made larger.
        ErrorExtending = "error_extending",
        /// It is copied to an image.
        Uploading = "uploading",
        /// Its type changes; set by administrators alone.
        Retyping = "retyping",
        /// An image is copied to it; set by administrators alone.
        Downloading = "downloading",
        /// A snapshot is written over it.
        Reverting = "reverting",
        /// It is taken over; set by administrators alone.
        Managing = "managing",
        /// It could not be taken over; set by administrators alone.
        ErrorManaging = "error_managing",
    }
}

states! {
    /// A snapshot's state.
    SnapshotStatus {
        /// Its bytes are being kept.
        Creating = "creating",
        /// It is there.
        Available = "available",
        /// It is being removed.
        Deleting = "deleting",
        /// It could not be made.
        Error = "error",
        /// It could not be removed.
        ErrorDeleting = "error_deleting",
        /// A backup is being made of it.
        BackingUp = "backing-up",
        /// It is being written over its volume.
        Restoring = "restoring",
    }
}

states! {
    /// A backup's state.
    BackupStatus {
        /// It is being written.
        Creating = "creating",
        /// It is there, whole.
        Available = "available",
        /// It is being removed.
        Deleting = "deleting",
        /// It is being read into a volume.
        Restoring = "restoring",
        /// It could not be made.
        Error = "error",
        /// It could not be removed.
        ErrorDeleting = "error_deleting",
    }
}

states! {
    /// What has to be done with the bytes of a volume, a snapshot or a backup.
    Task {
        /// Make them.
        Create = "create",
        /// Make more of them.
        Extend = "extend",
        /// Copy them to an image.
        Upload = "upload",
        /// Write a backup's over them.
        Restore = "restore",
        /// Write a snapshot's over them.
        Revert = "revert",
        /// Remove them.
        Delete = "delete",
    }
}

states! {
    /// An attachment's state.
    AttachStatus {
        /// The volume is kept for it.
        Reserved = "reserved",
        /// It is being made.
        Attaching = "attaching",
        /// The server has the volume.
        Attached = "attached",
        /// It is being ended.
        Detaching = "detaching",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_one_name() {
        for status in Status::ALL {
            assert_eq!(Status::parse(status.name()), Some(*status));
        }
        assert_eq!(Status::parse("no such state"), None);
    }
}
