//! How rows are read and written: the columns that every resource has, and values that SQLite has no type for.

use std::str::FromStr;

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params_from_iter};
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{Context, Result};

/// What every resource has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Its id.
    pub id: Uuid,
    /// Whose it is; empty: the cloud's own.
    pub project_id: String,
    /// For people; need not be unique.
    pub name: String,
    /// For people.
    pub description: String,
    /// Sorted, each once.
    pub tags: Vec<String>,
    /// Rises with every change.
    pub revision: i64,
    /// RFC 3339, UTC, whole seconds.
    pub created_at: String,
    /// RFC 3339, UTC, whole seconds.
    pub updated_at: String,
}

impl Meta {
    /// Of a new resource.
    pub(crate) fn new(project_id: &str, name: &str, description: &str) -> Self {
        let now = now();
        Meta {
            id: Uuid::new_v4(),
            project_id: project_id.to_owned(),
            name: name.to_owned(),
            description: description.to_owned(),
            tags: Vec::new(),
            revision: 0,
            created_at: now.clone(),
            updated_at: now,
        }
    }

    pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Meta {
            id: parsed(row, "id")?,
            project_id: row.get("project_id")?,
            name: row.get("name")?,
            description: row.get("description")?,
            tags: json(row, "tags")?,
            revision: row.get("revision")?,
            created_at: row.get("created_at")?,
            updated_at: row.get("updated_at")?,
        })
    }

    pub(crate) fn columns(&self) -> Columns {
        vec![
            ("id", text(self.id)),
            ("project_id", text(&self.project_id)),
            ("name", text(&self.name)),
            ("description", text(&self.description)),
            ("tags", to_json(&self.tags)),
            ("revision", self.revision.into()),
            ("created_at", text(&self.created_at)),
            ("updated_at", text(&self.updated_at)),
        ]
    }

    /// The resource has changed.
    pub(crate) fn touch(&mut self) {
        self.revision += 1;
        self.updated_at = now();
    }
}

/// A row to be written: names of columns and their values, `id` first.
pub(crate) type Columns = Vec<(&'static str, Value)>;

pub(crate) fn now() -> String {
    let now = OffsetDateTime::now_utc()
        .replace_nanosecond(0)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    now.format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}

pub(crate) fn text(value: impl ToString) -> Value {
    Value::Text(value.to_string())
}

pub(crate) fn optional(value: Option<impl ToString>) -> Value {
    value.map_or(Value::Null, text)
}

pub(crate) fn to_json(value: &impl Serialize) -> Value {
    // Lists of plain values always have a JSON form.
    Value::Text(serde_json::to_string(value).unwrap_or_default())
}

/// A column with the text form of a value.
pub(crate) fn parsed<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<T>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let value: String = row.get(column)?;
    value.parse().map_err(|e| broken(column, e))
}

/// A column with the text form of a value, or NULL.
pub(crate) fn parsed_optional<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let value: Option<String> = row.get(column)?;
    value
        .map(|v| v.parse().map_err(|e| broken(column, e)))
        .transpose()
}

/// A column with JSON.
pub(crate) fn json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let value: String = row.get(column)?;
    serde_json::from_str(&value).map_err(|e| broken(column, e))
}

fn broken(column: &str, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    tracing::error!(column, %error, "a row of the network tables cannot be read");
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
}

/// Inserts the row, or makes the row of this id equal to it.
pub(crate) fn save(conn: &Connection, table: &'static str, columns: Columns) -> Result<()> {
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    let places = vec!["?"; names.len()].join(",");
    let sets: Vec<String> = names
        .iter()
        .skip(1)
        .map(|name| format!("{name}=excluded.{name}"))
        .collect();
    let sql = format!(
        "INSERT INTO {table} ({}) VALUES ({places}) ON CONFLICT (id) DO UPDATE SET {}",
        names.join(","),
        sets.join(",")
    );
    conn.prepare_cached(&sql)?
        .execute(params_from_iter(columns.into_iter().map(|(_, value)| value)))?;
    Ok(())
}

pub(crate) fn remove(conn: &Connection, table: &'static str, id: Uuid) -> Result<()> {
    conn.prepare_cached(&format!("DELETE FROM {table} WHERE id=?1"))?
        .execute([id.to_string()])?;
    Ok(())
}

/// A condition in SQL with its values.
#[derive(Debug, Clone)]
pub(crate) struct Condition {
    sql: String,
    values: Vec<Value>,
}

impl Condition {
    pub(crate) fn all() -> Self {
        Condition {
            sql: "1".into(),
            values: Vec::new(),
        }
    }

    pub(crate) fn new(sql: impl Into<String>, values: Vec<Value>) -> Self {
        Condition {
            sql: sql.into(),
            values,
        }
    }

    pub(crate) fn equals(column: &str, value: impl ToString) -> Self {
        Condition {
            sql: format!("{column}=?"),
            values: vec![text(value)],
        }
    }

    /// The rows of this resource that the caller may see; `also` is a condition that opens more of them, in which `?` is
    /// the caller's project.
    pub(crate) fn visible(ctx: &Context, also: Option<&str>) -> Result<Self> {
        if ctx.is_admin() {
            return Ok(Condition::all());
        }
        let project = text(ctx.project()?);
        Ok(match also {
            Some(also) => {
                let places = 1 + also.matches('?').count();
                Condition::new(format!("(project_id=? OR {also})"), vec![project; places])
            }
            None => Condition::new("project_id=?", vec![project]),
        })
    }

    pub(crate) fn and(mut self, other: Condition) -> Self {
        self.sql = format!("{} AND {}", self.sql, other.sql);
        self.values.extend(other.values);
        self
    }
}

/// Conditions on columns that an API's query asks for: one of the values for each column. Columns are names of ours.
#[derive(Debug, Clone, Default)]
pub struct Where(pub Vec<(&'static str, Vec<String>)>);

impl Where {
    pub(crate) fn condition(&self) -> Condition {
        let mut condition = Condition::all();
        for (column, values) in &self.0 {
            let places = vec!["?"; values.len()].join(",");
            let part = Condition::new(
                format!("{column} IN ({places})"),
                values.iter().map(text).collect(),
            );
            condition = condition.and(part);
        }
        condition
    }
}

pub(crate) fn select<T>(
    conn: &Connection,
    table: &'static str,
    condition: Condition,
    read: fn(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>> {
    let sql = format!(
        "SELECT * FROM {table} WHERE {} ORDER BY created_at, id",
        condition.sql
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let rows = statement.query_map(params_from_iter(condition.values), read)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(crate) fn find<T>(
    conn: &Connection,
    table: &'static str,
    condition: Condition,
    read: fn(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>> {
    let sql = format!("SELECT * FROM {table} WHERE {} LIMIT 1", condition.sql);
    Ok(conn
        .prepare_cached(&sql)?
        .query_row(params_from_iter(condition.values), read)
        .optional()?)
}

/// Rows of the table that meet the condition.
pub(crate) fn count(conn: &Connection, table: &'static str, condition: Condition) -> Result<i64> {
    let sql = format!("SELECT count(*) FROM {table} WHERE {}", condition.sql);
    Ok(conn
        .prepare_cached(&sql)?
        .query_row(params_from_iter(condition.values), |row| row.get(0))?)
}

/// The project that a new resource belongs to: the caller's, or another that an admin names.
pub(crate) fn owner(ctx: &Context, named: Option<&str>) -> Result<String> {
    match named {
        Some(project) if ctx.is_admin() => Ok(project.to_owned()),
        Some(project) if ctx.project()? != project => Err(crate::Error::BadRequest(
            "Specifying 'project_id' or 'tenant_id' other than the authenticated project in request requires admin \
             privileges"
                .into(),
        )),
        _ => Ok(ctx.project()?.to_owned()),
    }
}

/// What is visible but belongs to someone else cannot be changed.
pub(crate) fn check_owner(ctx: &Context, meta: &Meta, rule: &str) -> Result<()> {
    if ctx.sees(&meta.project_id) {
        Ok(())
    } else {
        Err(super::errors::disallowed(rule))
    }
}
