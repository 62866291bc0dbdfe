//! The hierarchy of keys.

use std::sync::Arc;

use async_trait::async_trait;
use model::disk::DiskKey;
use rusqlite::{Connection, OptionalExtension, params};
use tracing::info;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::Kek;
use crate::driver::{DiskKeys, DriverError};
use crate::identity::{Identity, now};
use crate::{Cloud, Error, Result};

/// Who is told of in events as the writer.
pub(super) const NAME: &str = "encryption";
/// Bytes of a key that encrypts keys.
const KEK: usize = 32;
/// Bytes of a data key: the data's and the tweak's.
const DATA: usize = 64;

fn of_domain(domain: &str) -> String {
    format!("disk key of domain {domain}")
}

fn of_project(project: &str) -> String {
    format!("disk key of project {project}")
}

fn of_lineage(lineage: Uuid, project: &str) -> String {
    format!("disk key of lineage {lineage} in project {project}")
}

fn random<const N: usize>() -> Zeroizing<[u8; N]> {
    let mut key = Zeroizing::new([0; N]);
    rand::fill(&mut key[..]);
    key
}

fn unwrap_domain(identity: &Identity, domain: &str, wrapped: &[u8]) -> Result<Kek> {
    let key = identity.unwrap(&of_domain(domain), wrapped).ok_or_else(|| {
        Error::Internal(format!(
            "the disk key of domain {domain} was not wrapped under this cloud's root key"
        ))
    })?;
    Kek::new(&key)
}

/// A domain's key, made when it is first needed.
fn domain_key(conn: &Connection, identity: &Identity, domain: &str) -> Result<Kek> {
    let wrapped = conn
        .prepare_cached("SELECT wrapped FROM encryption_domains WHERE domain_id = ?1")?
        .query_row([domain], |row| row.get::<_, Vec<u8>>(0))
        .optional()?;
    if let Some(wrapped) = wrapped {
        return unwrap_domain(identity, domain, &wrapped);
    }
    let key = random::<KEK>();
    conn.prepare_cached(
        "INSERT INTO encryption_domains (domain_id, wrapped, version, created_at) VALUES (?1, ?2, 1, ?3)",
    )?
    .execute(params![
        domain,
        identity.wrap(&of_domain(domain), &key[..])?,
        now()
    ])?;
    Kek::new(&key[..])
}

/// A project's key, if it has one.
fn known_project_key(conn: &Connection, identity: &Identity, project: &str) -> Result<Option<Kek>> {
    let row = conn
        .prepare_cached(
            "SELECT domain_id, d.wrapped, p.wrapped
             FROM encryption_projects AS p JOIN encryption_domains AS d USING (domain_id) WHERE project_id = ?1",
        )?
        .query_row([project], |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, Vec<u8>>(1)?,
                row.get::<_, Vec<u8>>(2)?,
            ))
        })
        .optional()?;
    let Some((domain, outer, wrapped)) = row else {
        return Ok(None);
    };
    let outer = unwrap_domain(identity, &domain, &outer)?;
    Kek::new(&outer.open(&of_project(project), &wrapped)?).map(Some)
}

/// A project's key, made when it is first needed.
fn project_key(conn: &Connection, identity: &Identity, project: &str) -> Result<Kek> {
    if let Some(key) = known_project_key(conn, identity, project)? {
        return Ok(key);
    }
    let domain = conn
        .prepare_cached("SELECT domain_id FROM projects WHERE id = ?1")?
        .query_row([project], |row| row.get::<_, String>(0))
        .optional()?
        .ok_or_else(|| Error::not_found("Project", project))?;
    let key = random::<KEK>();
    let wrapped = domain_key(conn, identity, &domain)?.seal(&of_project(project), &key[..])?;
    conn.prepare_cached(
        "INSERT INTO encryption_projects (project_id, domain_id, wrapped, version, created_at)
         VALUES (?1, ?2, ?3, 1, ?4)",
    )?
    .execute(params![project, domain, wrapped, now()])?;
    Kek::new(&key[..])
}

/// The lineage of an image in a project, if there is one.
pub(super) fn lineage_of_image(conn: &Connection, project: &str, image: Uuid) -> Result<Option<Uuid>> {
    let mut sql = conn
        .prepare_cached("SELECT lineage FROM encryption_lineages WHERE project_id = ?1 AND image_id = ?2")?;
    let found = sql
        .query_row(params![project, image.to_string()], |row| row.get::<_, String>(0))
        .optional()?;
    found.map(|text| parse(&text)).transpose()
}

pub(super) fn parse(text: &str) -> Result<Uuid> {
    text.parse()
        .map_err(|_| Error::Internal(format!("a row has the lineage {text:?}, which is no id")))
}

/// A new lineage with a new data key.
pub(super) fn found(
    conn: &Connection,
    identity: &Identity,
    project: &str,
    image: Option<Uuid>,
) -> Result<Uuid> {
    let lineage = Uuid::new_v4();
    put(conn, identity, lineage, project, image, &random::<DATA>()[..])?;
    Ok(lineage)
}

fn put(
    conn: &Connection,
    identity: &Identity,
    lineage: Uuid,
    project: &str,
    image: Option<Uuid>,
    key: &[u8],
) -> Result<()> {
    let wrapped = project_key(conn, identity, project)?.seal(&of_lineage(lineage, project), key)?;
    conn.prepare_cached(
        "INSERT OR IGNORE INTO encryption_lineages (lineage, project_id, image_id, wrapped, created_at, used_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
    )?
    .execute(params![
        lineage.to_string(),
        project,
        image.map(|id| id.to_string()),
        wrapped,
        now()
    ])?;
    Ok(())
}

/// A lineage's data key, and the project under whose key it lies.
fn data_key(conn: &Connection, identity: &Identity, lineage: Uuid) -> Result<(Zeroizing<Vec<u8>>, String)> {
    let row = conn
        .prepare_cached("SELECT project_id, wrapped FROM encryption_lineages WHERE lineage = ?1 LIMIT 1")?
        .query_row([lineage.to_string()], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?))
        })
        .optional()?;
    let missing = || Error::Internal(format!("the key of lineage {lineage} is not there any more"));
    let (project, wrapped) = row.ok_or_else(missing)?;
    let outer = known_project_key(conn, identity, &project)?.ok_or_else(missing)?;
    Ok((outer.open(&of_lineage(lineage, &project), &wrapped)?, project))
}

/// Something of the lineage was made or removed.
pub(super) fn touch(conn: &Connection, lineage: Uuid) -> Result<()> {
    conn.prepare_cached("UPDATE encryption_lineages SET used_at = ?2 WHERE lineage = ?1")?
        .execute(params![lineage.to_string(), now()])?;
    Ok(())
}

/// A project gets a lineage's key, too.
pub(super) fn share(conn: &Connection, identity: &Identity, lineage: Uuid, project: &str) -> Result<()> {
    let (key, _) = data_key(conn, identity, lineage)?;
    put(conn, identity, lineage, project, None, &key)
}

/// What volumes' owners get their keys from.
pub struct Keyring {
    store: store::Store,
    identity: Arc<Identity>,
}

impl Keyring {
    /// The keys in this database, under this root key.
    pub fn new(store: store::Store, identity: Arc<Identity>) -> Self {
        Keyring { store, identity }
    }
}

#[async_trait]
impl DiskKeys for Keyring {
    async fn disk_key(&self, lineage: Uuid, purpose: &str) -> std::result::Result<DiskKey, DriverError> {
        let identity = self.identity.clone();
        let found = self
            .store
            .read(move |conn| data_key(conn, &identity, lineage))
            .await;
        let (key, project) = found.map_err(|error| DriverError::Failed(error.to_string()))?;
        let halves = key.split_first_chunk::<32>().map(|(data, tweak)| (*data, tweak));
        let Some((data, Ok(tweak))) = halves.map(|(data, tweak)| (data, tweak.try_into())) else {
            return Err(DriverError::Failed(format!(
                "the key of lineage {lineage} has {} bytes, not {DATA}",
                key.len()
            )));
        };
        info!(target: "audit", event = "disk key decrypted", %lineage, project, purpose);
        Ok(DiskKey { lineage, data, tweak })
    }
}

/// Encrypts the keys below an exchanged one anew. The table that they are in, its column of names, and the one that names the exchanged one.
fn rewrap(
    conn: &Connection,
    (table, name, above): (&str, &str, &str),
    whose: &str,
    purpose: impl Fn(&str) -> Result<String>,
    (old, new): (&Kek, &Kek),
) -> Result<()> {
    let mut select =
        conn.prepare_cached(&format!("SELECT {name}, wrapped FROM {table} WHERE {above} = ?1"))?;
    let rows: Vec<(String, Vec<u8>)> = select
        .query_map([whose], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<std::result::Result<_, _>>()?;
    let mut update = conn.prepare_cached(&format!(
        "UPDATE {table} SET wrapped = ?3 WHERE {name} = ?1 AND {above} = ?2"
    ))?;
    for (text, sealed) in rows {
        let purpose = purpose(&text)?;
        let key = old.open(&purpose, &sealed)?;
        update.execute(params![text, whose, new.seal(&purpose, &key)?])?;
    }
    Ok(())
}

/// Exchanges a project's key: its data keys are encrypted under the new one. Disks are not touched.
///
/// # Errors
/// If the project has no key, or the store refuses.
pub async fn rotate_project(cloud: &Cloud, project: &str) -> Result<()> {
    let (identity, project) = (cloud.identity.clone(), project.to_owned());
    cloud
        .store
        .write(NAME, move |conn| {
            let old = known_project_key(conn, &identity, &project)?
                .ok_or_else(|| Error::not_found("Key of project", &project))?;
            let domain: String = conn
                .prepare_cached("SELECT domain_id FROM encryption_projects WHERE project_id = ?1")?
                .query_row([&project], |row| row.get(0))?;
            let fresh = random::<KEK>();
            let new = Kek::new(&fresh[..])?;
            let wrapped = domain_key(conn, &identity, &domain)?.seal(&of_project(&project), &fresh[..])?;
            rewrap(
                conn,
                ("encryption_lineages", "lineage", "project_id"),
                &project,
                |lineage| Ok(of_lineage(parse(lineage)?, &project)),
                (&old, &new),
            )?;
            conn.prepare_cached(
                "UPDATE encryption_projects SET wrapped = ?2, version = version + 1, created_at = ?3
                 WHERE project_id = ?1",
            )?
            .execute(params![project, wrapped, now()])?;
            info!(target: "audit", event = "disk key exchanged", project);
            Ok(())
        })
        .await
}

/// Exchanges a domain's key likewise: its projects' keys are encrypted under the new one.
///
/// # Errors
/// If the domain has no key, or the store refuses.
pub async fn rotate_domain(cloud: &Cloud, domain: &str) -> Result<()> {
    let (identity, domain) = (cloud.identity.clone(), domain.to_owned());
    cloud
        .store
        .write(NAME, move |conn| {
            let wrapped = conn
                .prepare_cached("SELECT wrapped FROM encryption_domains WHERE domain_id = ?1")?
                .query_row([&domain], |row| row.get::<_, Vec<u8>>(0))
                .optional()?
                .ok_or_else(|| Error::not_found("Key of domain", &domain))?;
            let old = unwrap_domain(&identity, &domain, &wrapped)?;
            let fresh = random::<KEK>();
            let new = Kek::new(&fresh[..])?;
            rewrap(
                conn,
                ("encryption_projects", "project_id", "domain_id"),
                &domain,
                |project| Ok(of_project(project)),
                (&old, &new),
            )?;
            conn.prepare_cached(
                "UPDATE encryption_domains SET wrapped = ?2, version = version + 1, created_at = ?3
                 WHERE domain_id = ?1",
            )?
            .execute(params![
                domain,
                identity.wrap(&of_domain(&domain), &fresh[..])?,
                now()
            ])?;
            info!(target: "audit", event = "disk key exchanged", domain);
            Ok(())
        })
        .await
}
