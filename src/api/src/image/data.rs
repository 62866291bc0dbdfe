//! `/v2/images/{id}/file`: bytes in and out, never more of them in memory than one chunk.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use cloud::image::{data, staging};
use futures::{Stream, StreamExt};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;
use tokio_util::io::ReaderStream;

use super::{Answer, no_content, parse_id};
use crate::AppState;
use crate::auth::Auth;
use crate::fault::{Fault, Service};

/// A client that sends nothing for this long has broken its upload off.
const STALL: Duration = Duration::from_secs(60);
/// Nor may an upload hold its place by a trickle: in each minute at least this many bytes come.
const TRICKLE: u64 = 512 * 1024;
/// Bytes that are read at once.
const CHUNK: usize = 256 * 1024;

pub(super) async fn upload(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let id = parse_id(&id)?;
    let length = length(&headers)?;
    data::upload(&state.cloud, &ctx, id, length, Box::pin(chunks(body))).await?;
    Ok(no_content())
}

pub(super) async fn stage(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let id = parse_id(&id)?;
    let length = length(&headers)?;
    staging::stage(&state.cloud, &ctx, id, length, Box::pin(chunks(body))).await?;
    Ok(no_content())
}

/// How many bytes the client announces, after it said that it sends bytes.
fn length(headers: &HeaderMap) -> Result<Option<u64>, cloud::Error> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let kind = text(header::CONTENT_TYPE).unwrap_or("");
    if !kind.starts_with("application/octet-stream") {
        let text = format!("Unsupported Content-Type {kind:?}: send application/octet-stream.");
        return Err(cloud::Error::UnsupportedMediaType(text));
    }
    Ok(text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok()))
}

/// A body's bytes, until none, or too few, come for too long.
fn chunks(body: Body) -> impl Stream<Item = Result<Bytes, String>> + Send {
    let began = (Instant::now(), 0_u64);
    futures::stream::unfold(
        (body.into_data_stream(), began),
        |(mut stream, (began, came))| async move {
            match tokio::time::timeout(STALL, stream.next()).await {
                Ok(None) => None,
                Ok(Some(Ok(chunk))) => {
                    let came = came + chunk.len() as u64;
                    match began.elapsed() < STALL {
                        true => Some((Ok(chunk), (stream, (began, came)))),
                        false if came >= TRICKLE => Some((Ok(chunk), (stream, (Instant::now(), 0)))),
                        false => Some((
                            Err(format!("{came} bytes in a minute are too few")),
                            (stream, (began, came)),
                        )),
                    }
                }
                Ok(Some(Err(error))) => Some((Err(error.to_string()), (stream, (began, came)))),
                Err(_) => Some((Err("no bytes for a minute".to_owned()), (stream, (began, came)))),
            }
        },
    )
}

/// A part of a file: where it begins, and how long it is.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Whole,
    Range(u64, u64),
    /// Beyond the end.
    Nothing,
}

/// One range (RFC 9110 §14.1.2). What is no range of bytes, or several, is ignored, as the RFC allows.
fn part(range: Option<&str>, size: u64) -> Part {
    let Some((first, last)) = range
        .and_then(|r| r.strip_prefix("bytes="))
        .and_then(|r| r.split_once('-'))
    else {
        return Part::Whole;
    };
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        return match last.parse::<u64>() {
            Ok(0) => Part::Nothing,
            Ok(count) => Part::Range(size - count.min(size), count.min(size)),
            Err(_) => Part::Whole,
        };
    }
    let Ok(first) = first.parse::<u64>() else {
        return Part::Whole;
    };
    let last = if last.is_empty() {
        u64::MAX
    } else {
        last.parse::<u64>().unwrap_or(0)
    };
    if last < first {
        return Part::Whole;
    }
    if first >= size {
        return Part::Nothing;
    }
    Part::Range(first, last.min(size - 1) - first + 1)
}

pub(super) async fn download(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Answer {
    let Some(mut download) = data::download(&state.cloud, &ctx, parse_id(&id)?).await? else {
        return Ok(no_content());
    };
    let size = download.size;
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let (status, start, length) = match part(range, size) {
        Part::Whole => (StatusCode::OK, 0, size),
        Part::Range(start, length) => (StatusCode::PARTIAL_CONTENT, start, length),
        Part::Nothing => {
            let text = format!("The image has {size} bytes; the range begins beyond.");
            return Err(Fault::http(Service::Image, StatusCode::RANGE_NOT_SATISFIABLE, text).into());
        }
    };
    download.seek(start).await?;
    let checksum = download.image.checksum.take();
    let stream = ReaderStream::with_capacity(download.file.take(length), CHUNK);
    let mut response: Response = (status, Body::from_stream(stream)).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {start}-{}/{size}", start + length - 1);
        if let Ok(range) = HeaderValue::from_str(&range) {
            headers.insert(header::CONTENT_RANGE, range);
        }
    } else if let Some(Ok(md5)) = checksum.map(|checksum| HeaderValue::from_str(&checksum)) {
        headers.insert("content-md5", md5);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(part(None, 10), Part::Whole);
        assert_eq!(part(Some("bytes=0-0"), 10), Part::Range(0, 1));
        assert_eq!(part(Some("bytes=3-"), 10), Part::Range(3, 7));
        assert_eq!(part(Some("bytes=-4"), 10), Part::Range(6, 4));
        assert_eq!(part(Some("bytes=-40"), 10), Part::Range(0, 10));
        assert_eq!(part(Some("bytes=2-99"), 10), Part::Range(2, 8));
        assert_eq!(part(Some("bytes=10-"), 10), Part::Nothing);
        assert_eq!(part(Some("bytes=5-2"), 10), Part::Whole);
        assert_eq!(part(Some("lines=1-2"), 10), Part::Whole);
    }

    proptest! {
        #[test]
        fn no_range_leaves_the_file(first in "[0-9]{0,20}", last in "[0-9]{0,20}", size in 1u64..1000) {
            if let Part::Range(start, length) = part(Some(&format!("bytes={first}-{last}")), size) {
                prop_assert!(length > 0 && start + length <= size);
            }
        }
    }
}
