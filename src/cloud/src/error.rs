//! What can go wrong, told without HTTP; the API edge turns it into each service's kind of fault.

/// The result of a rule.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request was not carried out. The text of every variant but `Internal` is for the caller.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No such thing, or none that the caller may see.
    #[error("{resource} {id} could not be found.")]
    NotFound {
        /// As OpenStack calls it, such as `Instance`.
        resource: &'static str,
        /// What was looked for.
        id: String,
    },
    /// The request makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// No or no valid proof of identity.
    #[error("{0}")]
    Unauthorized(String),
    /// Known, but not allowed.
    #[error("{0}")]
    Forbidden(String),
    /// It contradicts the state that the thing is in.
    #[error("{0}")]
    Conflict(String),
    /// A quota is used up.
    #[error("{0}")]
    QuotaExceeded(String),
    /// The body or a value is larger than allowed.
    #[error("{0}")]
    TooLarge(String),
    /// The body's type is not one that this service takes.
    #[error("{0}")]
    UnsupportedMediaType(String),
    /// Not now: it may work later.
    #[error("{0}")]
    Unavailable(String),
    /// One of the above under the name that this service's clients know it by, such as Neutron's `IpAddressInUse`.
    #[error("{message}")]
    Named {
        /// The name.
        name: &'static str,
        /// What it amounts to.
        kind: Kind,
        /// For the caller.
        message: String,
    },
    /// Our own fault; the text is for the log alone.
    #[error("{0}")]
    Internal(String),
}

/// What a named error amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As [`Error::NotFound`].
    NotFound,
    /// As [`Error::BadRequest`].
    BadRequest,
    /// As [`Error::Forbidden`].
    Forbidden,
    /// As [`Error::Conflict`].
    Conflict,
    /// As [`Error::QuotaExceeded`].
    QuotaExceeded,
    /// As [`Error::Unavailable`].
    Unavailable,
    /// The caller's condition on the thing's state does not hold.
    PreconditionFailed,
}

impl Error {
    /// Shorthand for [`Error::NotFound`].
    pub fn not_found(resource: &'static str, id: impl ToString) -> Self {
        Error::NotFound {
            resource,
            id: id.to_string(),
        }
    }

    /// What this amounts to, for rules that act on it; `None` for what has no named form.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Error::NotFound { .. } => Some(Kind::NotFound),
            Error::BadRequest(_) => Some(Kind::BadRequest),
            Error::Forbidden(_) => Some(Kind::Forbidden),
            Error::Conflict(_) => Some(Kind::Conflict),
            Error::QuotaExceeded(_) => Some(Kind::QuotaExceeded),
            Error::Unavailable(_) => Some(Kind::Unavailable),
            Error::Named { kind, .. } => Some(*kind),
            Error::Unauthorized(_)
            | Error::TooLarge(_)
            | Error::UnsupportedMediaType(_)
            | Error::Internal(_) => None,
        }
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Sqlite(error) => database(&error),
            other => Error::Internal(other.to_string()),
        }
    }
}

impl From<store::rusqlite::Error> for Error {
    fn from(error: store::rusqlite::Error) -> Self {
        database(&error)
    }
}

fn database(error: &store::rusqlite::Error) -> Error {
    use store::rusqlite::ErrorCode;
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => {
            tracing::error!("the disk that holds the database is full: free space on it");
            Error::Unavailable("The cloud cannot store anything now: its disk is full.".into())
        }
        _ => Error::Internal(format!("database: {error}")),
    }
}

impl From<crate::driver::DriverError> for Error {
    fn from(error: crate::driver::DriverError) -> Self {
        use crate::driver::DriverError;
        match error {
            DriverError::BadInput(text) => Error::BadRequest(text),
            DriverError::Full(text) => {
                tracing::error!(error = %text, "a node is full");
                Error::Unavailable("The cloud has no space left for this.".into())
            }
            DriverError::Failed(text) => Error::Internal(text),
        }
    }
}
