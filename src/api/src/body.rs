//! Bodies and queries: whatever a client sends is either what a handler asked for, or a 4xx that says what is wrong.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use cloud::Error;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fault::{Fault, Service};

/// The largest JSON body.
pub const MAX_JSON: usize = 1024 * 1024;
/// The longest that a client may take to send a JSON body.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// JSON in and out. As an extractor it answers malformed JSON, wrong types, missing fields and too deep nesting with
/// 400, another content type with 415, and more than [`MAX_JSON`] with 413, all as the service's fault.
#[derive(Debug, Clone, Copy, Default)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, _: &S) -> Result<Self, Fault> {
        let (parts, body) = request.into_parts();
        let service = Service::of_request(&parts);
        json_type(&parts.headers).map_err(|e| Fault::new(service, e))?;
        let bytes = read(service, body, MAX_JSON).await?;
        parse(&bytes).map(Json).map_err(|e| Fault::new(service, e))
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// Parses JSON; the error names the place (`server.networks[0].port: …`).
///
/// # Errors
/// 400.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::BadRequest(
            "The request has no body, but needs one in JSON.".into(),
        ));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        match error.inner().classify() {
            serde_json::error::Category::Data if path != "." => Error::BadRequest(format!(
                "Invalid input for field/attribute {path}: {}",
                error.inner()
            )),
            serde_json::error::Category::Data => {
                Error::BadRequest(format!("Invalid input: {}", error.inner()))
            }
            _ => Error::BadRequest(format!("Malformed JSON in the request's body: {}", error.inner())),
        }
    })?;
    deserializer
        .end()
        .map_err(|error| Error::BadRequest(format!("Malformed JSON in the request's body: {error}")))?;
    Ok(value)
}

/// A body that names another type than JSON is refused; one that names none is taken for JSON.
fn json_type(headers: &HeaderMap) -> Result<(), Error> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let essence = value
        .to_str()
        .unwrap_or("")
        .split(';')
        .next()
        .unwrap_or("")
        .trim()
        .to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        Ok(())
    } else {
        Err(Error::UnsupportedMediaType(format!(
            "Unsupported Content-Type {essence:?}: send application/json."
        )))
    }
}

/// Reads a whole body of at most `limit` bytes, within [`BODY_TIMEOUT`].
///
/// # Errors
/// 413 if it is larger, 408 if it does not arrive in time, 400 if it breaks off.
pub async fn read(service: Service, body: axum::body::Body, limit: usize) -> Result<Bytes, Fault> {
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await;
    match collected {
        Err(_) => Err(Fault::http(
            service,
            StatusCode::REQUEST_TIMEOUT,
            "The request's body did not arrive in time.",
        )),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => Err(Fault::new(
            service,
            Error::TooLarge(format!("The request's body is larger than {limit} bytes.")),
        )),
        Ok(Err(_)) => Err(Fault::new(
            service,
            Error::BadRequest("The request's body broke off.".into()),
        )),
    }
}

/// A query string as a struct; a wrong type or a doubled field is 400.
#[derive(Debug, Clone, Copy, Default)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(query) => Ok(Query(query.0)),
            Err(rejection) => Err(Fault::new(
                Service::of_request(parts),
                Error::BadRequest(format!("Invalid query string: {}", rejection.body_text())),
            )),
        }
    }
}

/// A query string as its pairs in their order, for lists whose filters may be given twice. Never fails.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pairs(pub Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Pairs {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Pairs::parse(parts.uri.query().unwrap_or("")))
    }
}

impl Pairs {
    /// Splits and decodes a query string.
    pub fn parse(query: &str) -> Self {
        Pairs(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// The first value of this key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// All values of this key.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    }

    /// A number.
    ///
    /// # Errors
    /// 400 if it is there and none, or negative.
    pub fn number(&self, key: &str) -> Result<Option<u64>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = value.parse();
        number
            .map(Some)
            .map_err(|_| Error::BadRequest(format!("Invalid input for {key}: {value:?} is not a number.")))
    }

    /// A truth value as OpenStack's own library reads it; a key without a value is true (`?enabled`).
    ///
    /// # Errors
    /// 400 if it is there and none.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.to_ascii_lowercase().as_str() {
            "" | "1" | "t" | "true" | "on" | "y" | "yes" => Ok(Some(true)),
            "0" | "f" | "false" | "off" | "n" | "no" => Ok(Some(false)),
            _ => Err(Error::BadRequest(format!(
                "Invalid input for {key}: {value:?} is neither true nor false."
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Outer {
        #[allow(dead_code)]
        server: Inner,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        #[allow(dead_code)]
        min: u32,
    }

    #[test]
    fn errors_name_the_place() {
        let error = parse::<Outer>(br#"{"server": {"min": "x"}}"#).unwrap_err();
        assert!(error.to_string().contains("server.min"), "{error}");
        let error = parse::<Outer>(b"{\"server\"").unwrap_err();
        assert!(error.to_string().contains("Malformed JSON"), "{error}");
        assert!(parse::<Outer>(b"  ").unwrap_err().to_string().contains("no body"));
        assert!(parse::<Outer>(br#"{"server": {"min": 1}} x"#).is_err());
    }

    #[test]
    fn deep_nesting_is_refused_and_not_followed() {
        let deep = "[".repeat(100_000);
        assert!(matches!(
            parse::<serde_json::Value>(deep.as_bytes()),
            Err(Error::BadRequest(_))
        ));
    }

    #[test]
    fn flags_and_numbers() {
        let pairs = Pairs::parse("enabled&a=False&b=maybe&n=-1&id=x&id=y%20z");
        assert_eq!(pairs.flag("enabled").unwrap(), Some(true));
        assert_eq!(pairs.flag("a").unwrap(), Some(false));
        assert!(pairs.flag("b").is_err());
        assert!(pairs.number("n").is_err());
        assert_eq!(pairs.all("id").collect::<Vec<_>>(), ["x", "y z"]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_400_or_a_value(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Err(error) = parse::<Outer>(&bytes) {
                prop_assert!(matches!(error, Error::BadRequest(_)));
            }
        }
    }
}
