//! What identity does by itself: new token keys, and rows that time has made useless.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rusqlite::params;
use tokio::task::JoinHandle;

use super::{TOKEN_LIFETIME, micros, now};
use crate::worker::Activity;
use crate::{Cloud, Result};

/// A token key seals for this long. It opens for as long again as its last token lives, and then it goes.
pub const KEY_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(300);
/// The most rows that one write removes.
const CHUNK: i64 = 1000;
/// As [`crate::worker`] lists it.
const NAME: &str = "identity";

/// Starts the loop; it ends when the task is aborted.
pub fn spawn(cloud: Arc<Cloud>) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            match once(&cloud).await {
                Ok(()) => cloud.workers.set(NAME, Activity::Idle),
                Err(error) => {
                    tracing::warn!(%error, "identity upkeep failed");
                    let next_try = SystemTime::now() + INTERVAL;
                    cloud.workers.set(
                        NAME,
                        Activity::Failed {
                            error: error.to_string(),
                            next_try,
                        },
                    );
                }
            }
            tokio::time::sleep(INTERVAL).await;
        }
    })
}

/// One look: a new key if the newest is old, no keys and revocations that no living token needs.
///
/// # Errors
/// If the store cannot be read or written.
pub async fn once(cloud: &Cloud) -> Result<()> {
    once_at(cloud, now()).await
}

async fn once_at(cloud: &Cloud, now: i64) -> Result<()> {
    let due: (bool, bool, bool) = cloud
        .store
        .read(move |conn| {
            let newest = "SELECT max(created_at) FROM token_keys";
            let newest: Option<i64> = conn.query_row(newest, [], |row| row.get(0))?;
            let old_keys = "SELECT count(*) > 0 FROM token_keys
                 WHERE id < (SELECT max(id) FROM token_keys WHERE created_at < ?1)";
            let expired = "SELECT count(*) > 0 FROM token_revocations WHERE expires_at < ?1";
            Ok::<_, crate::Error>((
                newest.is_none_or(|at| at < now - micros(KEY_LIFETIME)),
                conn.query_row(old_keys, [superseded_before(now)], |row| row.get(0))?,
                conn.query_row(expired, [now], |row| row.get(0))?,
            ))
        })
        .await?;
    if due.0 {
        rotate_at(cloud, now).await?;
    }
    if due.1 || due.2 {
        cloud
            .store
            .write("identity", move |conn| {
                let sql = "DELETE FROM token_keys
                     WHERE id < (SELECT max(id) FROM token_keys WHERE created_at < ?1)";
                conn.execute(sql, [superseded_before(now)])?;
                let sql = "DELETE FROM token_revocations WHERE audit_id IN
                     (SELECT audit_id FROM token_revocations WHERE expires_at < ?1 LIMIT ?2)";
                conn.execute(sql, params![now, CHUNK])?;
                Ok::<_, crate::Error>(())
            })
            .await?;
    }
    Ok(())
}

/// A key with a successor from before this moment sealed its last token longer ago than a token lives.
fn superseded_before(now: i64) -> i64 {
    now - micros(TOKEN_LIFETIME) - micros(2 * INTERVAL)
}

/// A new token key from now on; tokens of the older ones go on being valid.
///
/// # Errors
/// If the store cannot be written.
pub async fn rotate(cloud: &Cloud) -> Result<()> {
    rotate_at(cloud, now()).await
}

async fn rotate_at(cloud: &Cloud, now: i64) -> Result<()> {
    let next = cloud.store.read(|conn| {
        Ok::<u32, crate::Error>(conn.query_row(
            "SELECT coalesce(max(id), 0) + 1 FROM token_keys",
            [],
            |row| row.get(0),
        )?)
    });
    let id = next.await?;
    let wrapped = cloud.identity.root.new_token_key(id)?;
    cloud
        .store
        .write("identity", move |conn| {
            // Two nodes that rotate at once make one key.
            let sql = "INSERT OR IGNORE INTO token_keys (id, wrapped, created_at) VALUES (?1, ?2, ?3)";
            conn.execute(sql, params![id, wrapped, now])?;
            Ok::<_, crate::Error>(())
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn keys(cloud: &Cloud) -> Vec<u32> {
        let read = cloud.store.read(|conn| {
            let mut sql = conn.prepare("SELECT id FROM token_keys ORDER BY id")?;
            Ok::<_, crate::Error>(
                sql.query_map([], |row| row.get(0))?
                    .collect::<rusqlite::Result<Vec<u32>>>()?,
            )
        });
        read.await.unwrap()
    }

    #[tokio::test]
    async fn keys_rotate_and_go_once_no_token_needs_them() {
        let test = crate::testing::cloud().await;
        let token = test.admin_token().await;
        let start = now();
        once_at(&test.cloud, start).await.unwrap();
        assert_eq!(keys(&test.cloud).await, [1]);

        let day = start + micros(KEY_LIFETIME) + 1_000_000;
        once_at(&test.cloud, day).await.unwrap();
        assert_eq!(keys(&test.cloud).await, [1, 2]);
        test.cloud.identity.validate(&token).unwrap();

        once_at(&test.cloud, day + micros(TOKEN_LIFETIME)).await.unwrap();
        assert_eq!(keys(&test.cloud).await, [1, 2]);
        once_at(&test.cloud, day + micros(TOKEN_LIFETIME) + micros(3 * INTERVAL))
            .await
            .unwrap();
        assert_eq!(keys(&test.cloud).await, [2]);
        assert!(test.cloud.identity.validate(&token).is_err());
        test.admin_token().await;
    }

    #[tokio::test]
    async fn revocations_go_when_their_tokens_have_ended() {
        let test = crate::testing::cloud().await;
        let token = test.admin_token().await;
        let ctx = test.cloud.identity.validate(&token).unwrap();
        super::super::tokens::revoke(&test.cloud, &ctx, &token)
            .await
            .unwrap();
        assert!(test.cloud.identity.validate(&token).is_err());
        once_at(&test.cloud, now() + micros(TOKEN_LIFETIME) + 1)
            .await
            .unwrap();
        let left = test.cloud.store.read(|conn| {
            Ok::<i64, crate::Error>(
                conn.query_row("SELECT count(*) FROM token_revocations", [], |row| row.get(0))?,
            )
        });
        assert_eq!(left.await.unwrap(), 0);
    }
}
