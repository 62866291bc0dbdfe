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
    /// Our own fault; the text is for the log alone.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// Shorthand for [`Error::NotFound`].
    pub fn not_found(resource: &'static str, id: impl ToString) -> Self {
        Error::NotFound { resource, id: id.to_string() }
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Error::Internal(error.to_string())
    }
}

impl From<store::rusqlite::Error> for Error {
    fn from(error: store::rusqlite::Error) -> Self {
        Error::Internal(format!("database: {error}"))
    }
}

impl From<crate::driver::DriverError> for Error {
    fn from(error: crate::driver::DriverError) -> Self {
        Error::Internal(error.to_string())
    }
}
