//! Metadata definitions: what properties of images, flavors, volumes and servers mean, for forms that people fill in.
//!
//! A namespace, which administrators make, has *objects* (groups of properties), *properties* (JSON Schema) and *tags*, and
//! says which *resource types* it is for. The cloud itself gives no meaning to them.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::{Map, Value, json};

use crate::identity::now;
use crate::{Cloud, Context, Error, Result};

/// Resource types that are there without a namespace that names them: those of the services that this cloud has.
pub const RESOURCE_TYPES: [&str; 5] = [
    "OS::Cinder::Volume",
    "OS::Glance::Image",
    "OS::Nova::Aggregate",
    "OS::Nova::Flavor",
    "OS::Nova::Server",
];

/// The most namespaces of the cloud.
const MAX_NAMESPACES: i64 = 1000;
/// The most objects, properties or tags of one namespace, each.
const MAX_ITEMS: i64 = 1000;
/// The most resource types of one namespace.
const MAX_TYPES: i64 = 100;
/// The longest namespaces' names, and those of the rest.
const MAX_NAME: usize = 80;
/// The longest free text.
const MAX_TEXT: usize = 64 * 1024;
/// The largest document of an item, as JSON.
const MAX_DOCUMENT: usize = 64 * 1024;

/// What a namespace has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A group of properties.
    Object,
    /// A property.
    Property,
    /// A word.
    Tag,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 3] = [Kind::Object, Kind::Property, Kind::Tag];

    fn name(self) -> &'static str {
        match self {
            Kind::Object => "object",
            Kind::Property => "property",
            Kind::Tag => "tag",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Kind::Object => "Metadata definition object",
            Kind::Property => "Metadata definition property",
            Kind::Tag => "Metadata definition tag",
        }
    }
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Namespace {
    pub namespace: String,
    pub display_name: Option<String>,
    pub description: Option<String>,
    /// Everyone sees it; without, its owner does.
    pub public: bool,
    /// It cannot be deleted, nor what is in it.
    pub protected: bool,
    /// The project.
    pub owner: String,
    /// Microseconds since 1970, as the others.
    pub created_at: i64,
    pub updated_at: i64,
}

/// That a namespace is for a kind of resource.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Association {
    pub name: String,
    /// What properties' names begin with there.
    pub prefix: Option<String>,
    /// Which of the resource's maps they belong into.
    pub properties_target: Option<String>,
    pub created_at: i64,
    pub updated_at: i64,
}

/// An object, a property or a tag.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Item {
    pub name: String,
    /// All but the name.
    pub document: Map<String, Value>,
    pub created_at: i64,
    pub updated_at: i64,
}

fn bad(text: impl Into<String>) -> Error {
    Error::BadRequest(text.into())
}

fn name(text: &str) -> Result<String> {
    let fits = !text.is_empty() && text.chars().count() <= MAX_NAME;
    if !fits || text.contains(|c: char| c.is_control() || c == '/') {
        return Err(bad(
            "A name has 1 to 80 characters, no slash and no control characters.",
        ));
    }
    Ok(text.to_owned())
}

fn text(document: &Map<String, Value>, key: &str) -> Result<Option<String>> {
    match document.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.len() <= MAX_TEXT && !text.contains('\0') => Ok(Some(text.clone())),
        Some(_) => Err(bad(format!(
            "Invalid value for '{key}': a text is needed, and not too long."
        ))),
    }
}

fn flag(document: &Map<String, Value>, key: &str) -> Result<Option<bool>> {
    match document.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(bad(format!(
            "Invalid value for '{key}': true or false is needed."
        ))),
    }
}

fn read_namespace(row: &Row<'_>) -> rusqlite::Result<Namespace> {
    Ok(Namespace {
        namespace: row.get("namespace")?,
        display_name: row.get("display_name")?,
        description: row.get("description")?,
        public: row.get::<_, String>("visibility")? == "public",
        protected: row.get("protected")?,
        owner: row.get("owner")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

fn missing(namespace: &str) -> Error {
    Error::not_found("Metadata definition namespace", namespace)
}

/// The namespace, if the caller sees it.
fn find(conn: &Connection, ctx: &Context, namespace: &str) -> Result<Namespace> {
    let mut sql = conn.prepare_cached("SELECT * FROM metadef_namespaces WHERE namespace = ?1")?;
    let found = sql.query_row([namespace], read_namespace).optional()?;
    found
        .filter(|found| found.public || ctx.sees(&found.owner))
        .ok_or_else(|| missing(namespace))
}

/// The namespace, if it may lose something.
fn find_unprotected(conn: &Connection, ctx: &Context, namespace: &str) -> Result<Namespace> {
    let found = find(conn, ctx, namespace)?;
    match found.protected {
        true => Err(Error::Forbidden(format!(
            "Metadata definition namespace {namespace} is protected and cannot be deleted."
        ))),
        false => Ok(found),
    }
}

fn set_namespace(ctx: &Context, namespace: &mut Namespace, document: &Map<String, Value>) -> Result<()> {
    if let Some(new) = text(document, "namespace")? {
        namespace.namespace = name(&new)?;
    }
    namespace.display_name = text(document, "display_name")?;
    if namespace
        .display_name
        .as_ref()
        .is_some_and(|text| text.chars().count() > MAX_NAME)
    {
        return Err(bad("Invalid value for 'display_name': at most 80 characters."));
    }
    namespace.description = text(document, "description")?;
    namespace.public = match text(document, "visibility")?.as_deref() {
        None | Some("private") => false,
        Some("public") => true,
        Some(_) => return Err(bad("Invalid value for 'visibility': it is public or private.")),
    };
    namespace.protected = flag(document, "protected")?.unwrap_or(false);
    if let Some(owner) = text(document, "owner")? {
        if owner.is_empty() || owner.len() > 255 || (owner != namespace.owner && !ctx.is_admin()) {
            return Err(bad("Invalid value for 'owner': a project's id is needed."));
        }
        namespace.owner = owner;
    }
    Ok(())
}

/// A namespace with all that is in it.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Whole {
    pub namespace: Namespace,
    pub resource_types: Vec<Association>,
    pub objects: Vec<Item>,
    pub properties: Vec<Item>,
    pub tags: Vec<Item>,
}

fn whole(conn: &Connection, namespace: Namespace) -> Result<Whole> {
    let at = namespace.namespace.clone();
    Ok(Whole {
        resource_types: associations(conn, &at)?,
        objects: items(conn, &at, Kind::Object)?,
        properties: items(conn, &at, Kind::Property)?,
        tags: items(conn, &at, Kind::Tag)?,
        namespace,
    })
}

/// Makes a namespace, with what the document says is in it.
///
/// # Errors
/// 403, 400, 409 if the name is taken, 413 for too many.
pub async fn create(cloud: &Cloud, ctx: &Context, document: Map<String, Value>) -> Result<Whole> {
    ctx.require("metadefs", "create")?;
    let now = now();
    let mut namespace = Namespace {
        namespace: String::new(),
        display_name: None,
        description: None,
        public: false,
        protected: false,
        owner: ctx.project()?.to_owned(),
        created_at: now,
        updated_at: now,
    };
    set_namespace(ctx, &mut namespace, &document)?;
    name(&namespace.namespace)?;
    let list = |key: &str| match document.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list
            .iter()
            .map(|one| {
                one.as_object()
                    .cloned()
                    .ok_or_else(|| bad(format!("Invalid value for '{key}'.")))
            })
            .collect(),
        Some(_) => Err(bad(format!("Invalid value for '{key}': a list is needed."))),
    };
    let properties = match document.get("properties") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Object(all)) => all
            .iter()
            .map(|(name, property)| named(name, property))
            .collect::<Result<_>>()?,
        Some(_) => return Err(bad("Invalid value for 'properties': an object is needed.")),
    };
    let (types, objects, tags) = (
        list("resource_type_associations")?,
        list("objects")?,
        list("tags")?,
    );
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let at = &namespace.namespace;
            let count: i64 = conn.query_row("SELECT count(*) FROM metadef_namespaces", [], |row| row.get(0))?;
            if count >= MAX_NAMESPACES {
                return Err(Error::QuotaExceeded(format!("There are at most {MAX_NAMESPACES} namespaces.")));
            }
            let mut sql = conn.prepare_cached("SELECT 1 FROM metadef_namespaces WHERE namespace = ?1")?;
            if sql.exists([at])? {
                return Err(Error::Conflict(format!(
                    "The metadata definition namespace={at} already exists."
                )));
            }
            conn.execute(
                "INSERT INTO metadef_namespaces (namespace, visibility, protected, owner, created_at, updated_at)
                 VALUES (?1, 'private', 0, '', ?2, ?2)",
                params![at, now],
            )?;
            save(conn, at, &namespace, now)?;
            types.iter().try_for_each(|one| associate(conn, at, one, now).map(|_| ()))?;
            objects.iter().try_for_each(|one| add(conn, at, Kind::Object, one, now).map(|_| ()))?;
            properties.iter().try_for_each(|one| add(conn, at, Kind::Property, one, now).map(|_| ()))?;
            tags.iter().try_for_each(|one| add(conn, at, Kind::Tag, one, now).map(|_| ()))?;
            whole(conn, namespace.clone())
        })
        .await
}

/// A property of a map, with its name in it.
fn named(name: &str, property: &Value) -> Result<Map<String, Value>> {
    let mut property = property
        .as_object()
        .cloned()
        .ok_or_else(|| bad("A property is an object."))?;
    property.insert("name".into(), name.into());
    Ok(property)
}

fn save(conn: &Connection, at: &str, new: &Namespace, now: i64) -> Result<()> {
    conn.execute(
        "UPDATE metadef_namespaces SET namespace = ?2, display_name = ?3, description = ?4, visibility = ?5,
             protected = ?6, owner = ?7, updated_at = ?8 WHERE namespace = ?1",
        params![
            at,
            new.namespace,
            new.display_name,
            new.description,
            if new.public { "public" } else { "private" },
            new.protected,
            new.owner,
            now
        ],
    )?;
    Ok(())
}

/// Namespaces that the caller sees, by name, and for which kinds of resources they are.
///
/// # Errors
/// 403.
pub async fn list(cloud: &Cloud, ctx: &Context) -> Result<Vec<(Namespace, Vec<Association>)>> {
    ctx.require("metadefs", "list")?;
    let ctx = ctx.clone();
    cloud
        .store
        .read(move |conn| {
            let mut sql = conn.prepare_cached("SELECT * FROM metadef_namespaces ORDER BY namespace")?;
            let rows = sql.query_map([], read_namespace)?;
            let mut all = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            all.retain(|one| one.public || ctx.sees(&one.owner));
            all.into_iter()
                .map(|one| {
                    let types = associations(conn, &one.namespace)?;
                    Ok((one, types))
                })
                .collect()
        })
        .await
}

/// A namespace with all that is in it.
///
/// # Errors
/// 404, 403.
pub async fn show(cloud: &Cloud, ctx: &Context, namespace: &str) -> Result<Whole> {
    ctx.require("metadefs", "show")?;
    let (ctx, at) = (ctx.clone(), namespace.to_owned());
    cloud
        .store
        .read(move |conn| {
            let found = find(conn, &ctx, &at)?;
            whole(conn, found)
        })
        .await
}

/// Changes a namespace, perhaps its name.
///
/// # Errors
/// 404, 403, 400, 409 if the name is taken.
pub async fn update(
    cloud: &Cloud,
    ctx: &Context,
    namespace: &str,
    document: Map<String, Value>,
) -> Result<Whole> {
    ctx.require("metadefs", "update")?;
    let (caller, ctx, at, now) = (ctx.user_id.clone(), ctx.clone(), namespace.to_owned(), now());
    cloud
        .store
        .write(&caller, move |conn| {
            let mut changed = find(conn, &ctx, &at)?;
            set_namespace(&ctx, &mut changed, &document)?;
            if changed.namespace != at {
                let mut sql = conn.prepare_cached("SELECT 1 FROM metadef_namespaces WHERE namespace = ?1")?;
                if sql.exists([&changed.namespace])? {
                    return Err(Error::Conflict(format!(
                        "The metadata definition namespace={} already exists.",
                        changed.namespace
                    )));
                }
                for table in ["metadef_resource_types", "metadef_items"] {
                    let sql = format!("UPDATE {table} SET namespace = ?2 WHERE namespace = ?1");
                    conn.execute(&sql, [&at, &changed.namespace])?;
                }
            }
            save(conn, &at, &changed, now)?;
            changed.updated_at = now;
            whole(conn, changed)
        })
        .await
}

/// Removes a namespace and all that is in it.
///
/// # Errors
/// 404, 403, also for a protected one.
pub async fn delete(cloud: &Cloud, ctx: &Context, namespace: &str) -> Result<()> {
    ctx.require("metadefs", "delete")?;
    let (caller, ctx, at) = (ctx.user_id.clone(), ctx.clone(), namespace.to_owned());
    cloud
        .store
        .write(&caller, move |conn| {
            find_unprotected(conn, &ctx, &at)?;
            for table in ["metadef_items", "metadef_resource_types", "metadef_namespaces"] {
                conn.execute(&format!("DELETE FROM {table} WHERE namespace = ?1"), [&at])?;
            }
            Ok(())
        })
        .await
}

fn read_association(row: &Row<'_>) -> rusqlite::Result<Association> {
    Ok(Association {
        name: row.get("name")?,
        prefix: row.get("prefix")?,
        properties_target: row.get("properties_target")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

fn associations(conn: &Connection, namespace: &str) -> Result<Vec<Association>> {
    let sql = "SELECT * FROM metadef_resource_types WHERE namespace = ?1 ORDER BY name";
    let mut sql = conn.prepare_cached(sql)?;
    let rows = sql.query_map([namespace], read_association)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn associate(conn: &Connection, at: &str, document: &Map<String, Value>, now: i64) -> Result<Association> {
    let kind = name(&text(document, "name")?.unwrap_or_default())?;
    let short = |key: &str| match text(document, key)? {
        Some(text) if text.chars().count() > MAX_NAME => Err(bad(format!("Invalid value for '{key}'."))),
        text => Ok(text),
    };
    let sql = "SELECT count(*) FROM metadef_resource_types WHERE namespace = ?1";
    let count: i64 = conn.prepare_cached(sql)?.query_row([at], |row| row.get(0))?;
    if count >= MAX_TYPES {
        return Err(Error::QuotaExceeded(format!(
            "A namespace has at most {MAX_TYPES} resource types."
        )));
    }
    let sql = "SELECT 1 FROM metadef_resource_types WHERE namespace = ?1 AND name = ?2";
    if conn.prepare_cached(sql)?.exists([at, &kind])? {
        return Err(Error::Conflict(format!(
            "The metadata definition resource-type association of resource-type={kind} to namespace={at} already exists."
        )));
    }
    let new = Association {
        name: kind,
        prefix: short("prefix")?,
        properties_target: short("properties_target")?,
        created_at: now,
        updated_at: now,
    };
    conn.execute(
        "INSERT INTO metadef_resource_types (namespace, name, prefix, properties_target, created_at, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
        params![at, new.name, new.prefix, new.properties_target, now],
    )?;
    Ok(new)
}

/// All kinds of resources, and when they were first named (0: from the beginning).
///
/// # Errors
/// 403.
pub async fn resource_types(cloud: &Cloud, ctx: &Context) -> Result<Vec<(String, i64)>> {
    ctx.require("metadefs", "list")?;
    let ctx = ctx.clone();
    cloud
        .store
        .read(move |conn| {
            // A private namespace tells nobody what it is for.
            let sql = "SELECT t.name, min(t.created_at), n.visibility, n.owner FROM metadef_resource_types t
                 JOIN metadef_namespaces n ON n.namespace = t.namespace GROUP BY t.name, n.visibility, n.owner";
            let mut sql = conn.prepare_cached(sql)?;
            let rows = sql.query_map([], |row| {
                let (visibility, owner): (String, String) = (row.get(2)?, row.get(3)?);
                Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, visibility, owner))
            })?;
            let mut all: std::collections::BTreeMap<String, i64> =
                RESOURCE_TYPES.iter().map(|name| ((*name).to_owned(), 0)).collect();
            for row in rows {
                let (name, created, visibility, owner) = row?;
                if visibility == "public" || ctx.sees(&owner) {
                    let first = all.entry(name).or_insert(created);
                    *first = created.min(*first);
                }
            }
            Ok(all.into_iter().collect())
        })
        .await
}

/// The kinds of resources that a namespace is for.
///
/// # Errors
/// 404, 403.
pub async fn list_associations(cloud: &Cloud, ctx: &Context, namespace: &str) -> Result<Vec<Association>> {
    Ok(show(cloud, ctx, namespace).await?.resource_types)
}

/// A namespace is for one more kind of resources.
///
/// # Errors
/// 404, 403, 400, 409 if it is already, 413 for too many.
pub async fn add_association(
    cloud: &Cloud,
    ctx: &Context,
    namespace: &str,
    document: Map<String, Value>,
) -> Result<Association> {
    ctx.require("metadefs", "update")?;
    let (caller, ctx, at, now) = (ctx.user_id.clone(), ctx.clone(), namespace.to_owned(), now());
    cloud
        .store
        .write(&caller, move |conn| {
            find(conn, &ctx, &at)?;
            associate(conn, &at, &document, now)
        })
        .await
}

/// And for one less.
///
/// # Errors
/// 404, 403, also in a protected namespace.
pub async fn remove_association(cloud: &Cloud, ctx: &Context, namespace: &str, kind: &str) -> Result<()> {
    ctx.require("metadefs", "update")?;
    let (caller, ctx, at, kind) = (
        ctx.user_id.clone(),
        ctx.clone(),
        namespace.to_owned(),
        kind.to_owned(),
    );
    cloud
        .store
        .write(&caller, move |conn| {
            find_unprotected(conn, &ctx, &at)?;
            let sql = "DELETE FROM metadef_resource_types WHERE namespace = ?1 AND name = ?2";
            match conn.execute(sql, [&at, &kind])? {
                0 => Err(Error::not_found(
                    "Metadata definition resource-type association",
                    &kind,
                )),
                _ => Ok(()),
            }
        })
        .await
}

fn read_item(row: &Row<'_>) -> rusqlite::Result<Item> {
    let document: String = row.get("document")?;
    Ok(Item {
        name: row.get("name")?,
        document: serde_json::from_str(&document).unwrap_or_default(),
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

fn items(conn: &Connection, namespace: &str, kind: Kind) -> Result<Vec<Item>> {
    let sql = "SELECT * FROM metadef_items WHERE namespace = ?1 AND kind = ?2 ORDER BY created_at, name";
    let mut sql = conn.prepare_cached(sql)?;
    let rows = sql.query_map([namespace, kind.name()], read_item)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn item(conn: &Connection, namespace: &str, kind: Kind, name: &str) -> Result<Item> {
    let sql = "SELECT * FROM metadef_items WHERE namespace = ?1 AND kind = ?2 AND name = ?3";
    let mut sql = conn.prepare_cached(sql)?;
    let found = sql
        .query_row([namespace, kind.name(), name], read_item)
        .optional()?;
    found.ok_or_else(|| Error::not_found(kind.title(), name))
}

/// JSON Schema's types, as far as Glance has them.
const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// What a property may say of itself: JSON Schema, as far as Glance has it.
const OF_PROPERTIES: [&str; 21] = [
    "name",
    "title",
    "description",
    "type",
    "enum",
    "items",
    "default",
    "operators",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "uniqueItems",
    "additionalItems",
    "readonly",
    "required",
    "format",
    "confidential",
];

fn check_property(property: &Map<String, Value>) -> Result<()> {
    if let Some(unknown) = property.keys().find(|key| !OF_PROPERTIES.contains(&key.as_str())) {
        let unknown: String = unknown.chars().take(64).collect();
        return Err(bad(format!("A property has no attribute '{unknown}'.")));
    }
    let kind = text(property, "type")?.unwrap_or_default();
    if !TYPES.contains(&kind.as_str()) {
        return Err(bad(format!("A property's type is one of {TYPES:?}.")));
    }
    if text(property, "title")?.is_none() {
        return Err(bad("A property has a title."));
    }
    Ok(())
}

/// The name and the document of an item, checked.
fn check(kind: Kind, mut document: Map<String, Value>) -> Result<(String, String)> {
    let name = name(&text(&document, "name")?.unwrap_or_default())?;
    for read_only in ["created_at", "updated_at", "self", "schema"] {
        document.remove(read_only);
    }
    let known: &[&str] = match kind {
        Kind::Property => {
            check_property(&document)?;
            &OF_PROPERTIES
        }
        Kind::Object => {
            text(&document, "description")?;
            match document.get("properties") {
                None | Some(Value::Null) => {}
                Some(Value::Object(all)) => all.values().try_for_each(|one| {
                    check_property(one.as_object().ok_or_else(|| bad("A property is an object."))?)
                })?,
                Some(_) => return Err(bad("Invalid value for 'properties': an object is needed.")),
            }
            let texts = |value: &Value| {
                value
                    .as_array()
                    .is_some_and(|list| list.iter().all(Value::is_string))
            };
            if document
                .get("required")
                .is_some_and(|required| !required.is_null() && !texts(required))
            {
                return Err(bad("Invalid value for 'required': a list of names is needed."));
            }
            &["name", "description", "properties", "required"]
        }
        Kind::Tag => &["name"],
    };
    if let Some(unknown) = document.keys().find(|key| !known.contains(&key.as_str())) {
        let unknown: String = unknown.chars().take(64).collect();
        return Err(bad(format!(
            "Additional properties are not allowed ('{unknown}')."
        )));
    }
    document.remove("name");
    let document = Value::Object(document).to_string();
    if document.len() > MAX_DOCUMENT {
        return Err(Error::TooLarge(format!(
            "A definition has at most {MAX_DOCUMENT} bytes."
        )));
    }
    Ok((name, document))
}

fn add(conn: &Connection, at: &str, kind: Kind, document: &Map<String, Value>, now: i64) -> Result<Item> {
    let (name, document) = check(kind, document.clone())?;
    let sql = "SELECT count(*) FROM metadef_items WHERE namespace = ?1 AND kind = ?2";
    let count: i64 = conn
        .prepare_cached(sql)?
        .query_row([at, kind.name()], |row| row.get(0))?;
    if count >= MAX_ITEMS {
        return Err(Error::QuotaExceeded(format!(
            "A namespace has at most {MAX_ITEMS} of them."
        )));
    }
    let sql = "SELECT 1 FROM metadef_items WHERE namespace = ?1 AND kind = ?2 AND name = ?3";
    if conn.prepare_cached(sql)?.exists([at, kind.name(), &name])? {
        return Err(Error::Conflict(format!(
            "A {} with name={name} in namespace={at} already exists.",
            kind.title().to_lowercase()
        )));
    }
    conn.prepare_cached(
        "INSERT INTO metadef_items (namespace, kind, name, document, created_at, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
    )?
    .execute(params![at, kind.name(), name, document, now])?;
    item(conn, at, kind, &name)
}

/// What a namespace has of a kind.
///
/// # Errors
/// 404, 403.
pub async fn list_items(cloud: &Cloud, ctx: &Context, namespace: &str, kind: Kind) -> Result<Vec<Item>> {
    ctx.require("metadefs", "show")?;
    let (ctx, at) = (ctx.clone(), namespace.to_owned());
    cloud
        .store
        .read(move |conn| {
            find(conn, &ctx, &at)?;
            items(conn, &at, kind)
        })
        .await
}

/// One object, property or tag.
///
/// # Errors
/// 404, 403.
pub async fn show_item(
    cloud: &Cloud,
    ctx: &Context,
    namespace: &str,
    kind: Kind,
    name: &str,
) -> Result<Item> {
    ctx.require("metadefs", "show")?;
    let (ctx, at, name) = (ctx.clone(), namespace.to_owned(), name.to_owned());
    cloud
        .store
        .read(move |conn| {
            find(conn, &ctx, &at)?;
            item(conn, &at, kind, &name)
        })
        .await
}

/// Adds one.
///
/// # Errors
/// 404, 403, 400, 409 if the name is taken, 413 for too many.
pub async fn add_item(
    cloud: &Cloud,
    ctx: &Context,
    namespace: &str,
    kind: Kind,
    document: Map<String, Value>,
) -> Result<Item> {
    ctx.require("metadefs", "update")?;
    let (caller, ctx, at, now) = (ctx.user_id.clone(), ctx.clone(), namespace.to_owned(), now());
    cloud
        .store
        .write(&caller, move |conn| {
            find(conn, &ctx, &at)?;
            add(conn, &at, kind, &document, now)
        })
        .await
}

/// Puts these tags in the place of all that there are, or beside them.
///
/// # Errors
/// 404, 403, 400, 409 if a name is taken, 413 for too many.
pub async fn set_tags(
    cloud: &Cloud,
    ctx: &Context,
    namespace: &str,
    names: Vec<String>,
    append: bool,
) -> Result<Vec<Item>> {
    ctx.require("metadefs", "update")?;
    let (caller, ctx, at, now) = (ctx.user_id.clone(), ctx.clone(), namespace.to_owned(), now());
    cloud
        .store
        .write(&caller, move |conn| {
            match append {
                true => find(conn, &ctx, &at)?,
                false => find_unprotected(conn, &ctx, &at)?,
            };
            if !append {
                remove_all(conn, &at, Kind::Tag)?;
            }
            for name in &names {
                let document = json!({"name": name});
                add(
                    conn,
                    &at,
                    Kind::Tag,
                    document.as_object().unwrap_or(&Map::new()),
                    now,
                )?;
            }
            items(conn, &at, Kind::Tag)
        })
        .await
}

/// Changes one, perhaps its name.
///
/// # Errors
/// 404, 403, 400, 409 if the name is taken.
pub async fn update_item(
    cloud: &Cloud,
    ctx: &Context,
    namespace: &str,
    kind: Kind,
    name: &str,
    document: Map<String, Value>,
) -> Result<Item> {
    ctx.require("metadefs", "update")?;
    let (caller, ctx, at, now) = (ctx.user_id.clone(), ctx.clone(), namespace.to_owned(), now());
    let (old, (new, document)) = (name.to_owned(), check(kind, document)?);
    cloud
        .store
        .write(&caller, move |conn| {
            find(conn, &ctx, &at)?;
            item(conn, &at, kind, &old)?;
            if new != old && item(conn, &at, kind, &new).is_ok() {
                return Err(Error::Conflict(format!(
                    "The name {new} is taken in namespace={at}."
                )));
            }
            conn.execute(
                "UPDATE metadef_items SET name = ?4, document = ?5, updated_at = ?6
                 WHERE namespace = ?1 AND kind = ?2 AND name = ?3",
                params![at, kind.name(), old, new, document, now],
            )?;
            item(conn, &at, kind, &new)
        })
        .await
}

/// Removes one.
///
/// # Errors
/// 404, 403, also in a protected namespace.
pub async fn remove_item(
    cloud: &Cloud,
    ctx: &Context,
    namespace: &str,
    kind: Kind,
    name: &str,
) -> Result<()> {
    ctx.require("metadefs", "update")?;
    let (caller, ctx, at, name) = (
        ctx.user_id.clone(),
        ctx.clone(),
        namespace.to_owned(),
        name.to_owned(),
    );
    cloud
        .store
        .write(&caller, move |conn| {
            find_unprotected(conn, &ctx, &at)?;
            item(conn, &at, kind, &name)?;
            let sql = "DELETE FROM metadef_items WHERE namespace = ?1 AND kind = ?2 AND name = ?3";
            conn.execute(sql, [&at, kind.name(), &name])?;
            Ok(())
        })
        .await
}

fn remove_all(conn: &Connection, at: &str, kind: Kind) -> Result<()> {
    let sql = "DELETE FROM metadef_items WHERE namespace = ?1 AND kind = ?2";
    conn.execute(sql, [at, kind.name()])?;
    Ok(())
}

/// Removes all of a kind.
///
/// # Errors
/// 404, 403, also in a protected namespace.
pub async fn remove_items(cloud: &Cloud, ctx: &Context, namespace: &str, kind: Kind) -> Result<()> {
    ctx.require("metadefs", "update")?;
    let (caller, ctx, at) = (ctx.user_id.clone(), ctx.clone(), namespace.to_owned());
    cloud
        .store
        .write(&caller, move |conn| {
            find_unprotected(conn, &ctx, &at)?;
            remove_all(conn, &at, kind)
        })
        .await
}

#[cfg(test)]
mod tests;
