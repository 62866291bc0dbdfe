//! Encryption of payloads, under one key for each project.

use rusqlite::{OptionalExtension, params};
use zeroize::Zeroizing;

use crate::encryption::Kek;
use crate::identity::now;
use crate::{Cloud, Error, Result};

fn purpose(project: &str) -> String {
    format!("secret key of project {project}")
}

/// The project's key, made when it is first needed.
pub(super) async fn key_of(cloud: &Cloud, project: &str) -> Result<Kek> {
    let read = |project: String| {
        cloud.store.read(move |conn| {
            let mut sql = conn.prepare_cached("SELECT wrapped FROM secret_keys WHERE project_id = ?1")?;
            Ok::<_, Error>(
                sql.query_row([project], |row| row.get::<_, Vec<u8>>(0))
                    .optional()?,
            )
        })
    };
    let wrapped = match read(project.to_owned()).await? {
        Some(wrapped) => wrapped,
        None => {
            let mut key = Zeroizing::new([0; 32]);
            rand::fill(&mut key[..]);
            let new = cloud.identity.wrap(&purpose(project), &key[..])?;
            let (name, now) = (project.to_owned(), now());
            // Of two that make one at once the first one's stays, and both use it.
            cloud
                .store
                .write("secret", move |conn| {
                    conn.prepare_cached(
                        "INSERT OR IGNORE INTO secret_keys (project_id, wrapped, created_at) VALUES (?1, ?2, ?3)",
                    )?
                    .execute(params![name, new, now])?;
                    let mut sql = conn.prepare_cached("SELECT wrapped FROM secret_keys WHERE project_id = ?1")?;
                    Ok::<_, Error>(sql.query_row([&name], |row| row.get::<_, Vec<u8>>(0))?)
                })
                .await?
        }
    };
    let key = cloud.identity.unwrap(&purpose(project), &wrapped);
    let key = key.ok_or_else(|| {
        Error::Internal(format!(
            "the key of project {project} was not wrapped under this cloud's root key"
        ))
    })?;
    Kek::new(&key)
}
