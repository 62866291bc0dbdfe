//! What all kinds of resources have in common: list, create (one or many), show, update, delete.

use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequestParts, OriginalUri, Path, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use cloud::error::Kind as ErrorKind;
use cloud::network::{Connection, Meta, Where};
use cloud::{Config, Context, Error, Result};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::attributes::Attributes;
use super::query::{Query, View};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};
use crate::fault::{Fault, ForService, Service};

/// The most resources of one request.
const MAX_BULK: usize = 256;

/// A kind of resource.
pub(super) trait Kind: Send + Sync + 'static {
    /// The key of one in a body.
    const ONE: &'static str;
    /// The key of many in a body.
    const MANY: &'static str;
    /// The type of the error where there is none.
    const NOT_FOUND: &'static str;
    /// Everything that a view may have, and so can be filtered and sorted by.
    const ATTRIBUTES: &'static [&'static str];
    /// Filters beside the attributes.
    const MORE_FILTERS: &'static [&'static str] = &[];
    /// What a POST may say.
    const POST: &'static [&'static str];
    /// What a PUT may say.
    const PUT: &'static [&'static str];
    /// Filters that are columns of the kind's table.
    const COLUMNS: &'static [(&'static str, &'static str)];
    /// A row of the rules.
    type Row: Send + 'static;
    /// What a request may say.
    type Fields: Send + Sync + 'static;

    fn parse(body: &Attributes<'_>) -> Result<Self::Fields>;
    /// What every resource has.
    fn meta(row: &Self::Row) -> &Meta;
    fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<Self::Row>>;
    fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<Self::Row>;
    fn create(conn: &Connection, config: &Config, ctx: &Context, fields: &Self::Fields) -> Result<Self::Row>;
    fn update(
        conn: &Connection,
        config: &Config,
        ctx: &Context,
        id: Uuid,
        fields: &Self::Fields,
    ) -> Result<Self::Row>;
    fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()>;
    /// The rows as the caller sees them.
    fn view(conn: &Connection, config: &Config, ctx: &Context, rows: Vec<Self::Row>) -> Result<Vec<View>>;
}

/// The routes of a kind, below its path.
pub(super) fn routes<K: Kind>(path: &str) -> Router<AppState> {
    Router::new()
        .route(path, get(list::<K>).post(create::<K>))
        .route(&format!("{path}/{{id}}"), single::<K>())
}

/// What is done with one resource.
pub(super) fn single<K: Kind>() -> MethodRouter<AppState> {
    get(show::<K>).put(update::<K>).delete(delete::<K>)
}

/// The attributes that every view begins with.
pub(super) fn common(meta: &Meta) -> View {
    let view = json!({
        "id": meta.id,
        "name": meta.name,
        "description": meta.description,
        "project_id": meta.project_id,
        "tenant_id": meta.project_id,
        "tags": meta.tags,
        "revision_number": meta.revision,
        "created_at": meta.created_at,
        "updated_at": meta.updated_at,
    });
    object(view)
}

/// The object that a `json!({…})` is.
pub(super) fn object(value: Value) -> View {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

/// The id in a path; what is no id at all is not found, as clients that look up by name expect.
pub(super) fn id_of<K: Kind>(text: &str) -> Result<Uuid> {
    text.parse().map_err(|_| {
        let text: String = text.chars().take(64).collect();
        let label = K::NOT_FOUND.trim_end_matches("NotFound");
        Error::Named {
            name: K::NOT_FOUND,
            kind: ErrorKind::NotFound,
            message: format!("{label} {text} could not be found."),
        }
    })
}

pub(super) async fn list<K: Kind>(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    OriginalUri(uri): OriginalUri,
    pairs: Pairs,
) -> Result<Response, Fault> {
    let cloud = Arc::clone(&state.cloud);
    let url = format!("{}{}", state.cloud.config.public_url, uri.path());
    let answer = async {
        let query = Query::read(&pairs, K::ATTRIBUTES, K::MORE_FILTERS)?;
        let columns = K::COLUMNS
            .iter()
            .filter_map(|(name, column)| Some((*column, query.values(name)?.to_vec())));
        let which = Where(columns.filter(|(_, values)| values.len() <= 500).collect());
        let views = state
            .cloud
            .store
            .read(move |conn| K::view(conn, &cloud.config, &ctx, K::list(conn, &ctx, &which)?))
            .await?;
        let (mut views, links) = query.apply(views, &url, &pairs)?;
        views.iter_mut().for_each(only_shown::<K>);
        let mut answer = View::new();
        answer.insert(K::MANY.into(), views.into_iter().map(Value::Object).collect());
        if !links.is_empty() {
            answer.insert(format!("{}_links", K::MANY), Value::Array(links));
        }
        Ok::<_, Error>(answer)
    };
    Ok(Json(answer.await.for_service(Service::Network)?).into_response())
}

pub(super) async fn show<K: Kind>(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    pairs: Pairs,
) -> Result<Response, Fault> {
    let cloud = Arc::clone(&state.cloud);
    let answer = async {
        let id = id_of::<K>(&id)?;
        let view = state
            .cloud
            .store
            .read(move |conn| one::<K>(conn, &cloud.config, &ctx, K::get(conn, &ctx, id)?));
        let mut view = view.await?;
        let fields: Vec<_> = pairs
            .0
            .iter()
            .filter(|(key, _)| key == "fields")
            .cloned()
            .collect();
        Query::read(&Pairs(fields), K::ATTRIBUTES, &[])?.only_fields(&mut view);
        Ok::<_, Error>(json!({ K::ONE: view }))
    };
    Ok(Json(answer.await.for_service(Service::Network)?).into_response())
}

fn one<K: Kind>(conn: &Connection, config: &Config, ctx: &Context, row: K::Row) -> Result<View> {
    let mut view = K::view(conn, config, ctx, vec![row])?.pop().unwrap_or_default();
    only_shown::<K>(&mut view);
    Ok(view)
}

/// What is there to filter by alone is not shown.
fn only_shown<K: Kind>(view: &mut View) {
    for filter in K::MORE_FILTERS
        .iter()
        .filter(|name| !K::ATTRIBUTES.contains(name))
    {
        view.remove(*filter);
    }
}

/// The revision that a request wants to change, by its `If-Match: revision_number=N`.
pub(super) struct Expected(Option<i64>);

impl<S: Send + Sync> FromRequestParts<S> for Expected {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Fault> {
        let Some(value) = parts.headers.get(header::IF_MATCH) else {
            return Ok(Expected(None));
        };
        let number = value
            .to_str()
            .ok()
            .and_then(|text| text.trim().strip_prefix("revision_number="))
            .and_then(|number| number.parse().ok());
        match number {
            Some(number) => Ok(Expected(Some(number))),
            None => Err(Fault::new(
                Service::Network,
                Error::BadRequest("Invalid value for If-Match: use revision_number=N.".into()),
            )),
        }
    }
}

impl Expected {
    fn check(&self, current: i64) -> Result<()> {
        match self.0 {
            Some(expected) if expected != current => Err(Error::Named {
                name: "RevisionNumberConstraintFailed",
                kind: ErrorKind::PreconditionFailed,
                message: format!("Constrained to {expected}, but current revision is {current}"),
            }),
            _ => Ok(()),
        }
    }
}

pub(super) async fn create<K: Kind>(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Json(body): Json<Value>,
) -> Result<Response, Fault> {
    let cloud = Arc::clone(&state.cloud);
    let answer = async {
        let (objects, bulk) = resources::<K>(&body)?;
        let fields = objects
            .into_iter()
            .map(|object| K::parse(&Attributes::new(object, K::POST, K::ATTRIBUTES, "POST")?))
            .collect::<Result<Vec<_>>>()?;
        let actor = ctx.user_id.clone();
        let views = state.cloud.store.write(&actor, move |conn| {
            let rows = fields
                .iter()
                .map(|fields| K::create(conn, &cloud.config, &ctx, fields));
            K::view(conn, &cloud.config, &ctx, rows.collect::<Result<_>>()?)
        });
        let mut views = views.await?;
        views.iter_mut().for_each(only_shown::<K>);
        Ok::<_, Error>(if bulk {
            json!({ K::MANY: views })
        } else {
            json!({ K::ONE: views.pop() })
        })
    };
    Ok((
        StatusCode::CREATED,
        Json(answer.await.for_service(Service::Network)?),
    )
        .into_response())
}

/// The resources of a POST's body, and whether they came as a list.
fn resources<K: Kind>(body: &Value) -> Result<(Vec<&Map<String, Value>>, bool)> {
    let malformed = || {
        Error::BadRequest(format!(
            "Resource body required: unable to find '{}' in request body",
            K::ONE
        ))
    };
    if let Some(one) = body.get(K::ONE) {
        return Ok((vec![one.as_object().ok_or_else(malformed)?], false));
    }
    let many = body
        .get(K::MANY)
        .and_then(Value::as_array)
        .filter(|many| !many.is_empty())
        .ok_or_else(malformed)?;
    if many.len() > MAX_BULK {
        return Err(Error::BadRequest(format!(
            "At most {MAX_BULK} {} can be made at once.",
            K::MANY
        )));
    }
    Ok((
        many.iter()
            // Some clients wrap each one in its own name again.
            .map(|one| one.get(K::ONE).unwrap_or(one).as_object().ok_or_else(malformed))
            .collect::<Result<_>>()?,
        true,
    ))
}

async fn update<K: Kind>(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    expected: Expected,
    Json(body): Json<Value>,
) -> Result<Response, Fault> {
    let cloud = Arc::clone(&state.cloud);
    let answer = async {
        let id = id_of::<K>(&id)?;
        let object = body.get(K::ONE).and_then(Value::as_object).ok_or_else(|| {
            Error::BadRequest(format!(
                "Resource body required: unable to find '{}' in request body",
                K::ONE
            ))
        })?;
        let fields = K::parse(&Attributes::new(object, K::PUT, K::ATTRIBUTES, "PUT")?)?;
        let actor = ctx.user_id.clone();
        let view = state.cloud.store.write(&actor, move |conn| {
            if expected.0.is_some() {
                expected.check(K::meta(&K::get(conn, &ctx, id)?).revision)?;
            }
            let row = K::update(conn, &cloud.config, &ctx, id, &fields)?;
            one::<K>(conn, &cloud.config, &ctx, row)
        });
        Ok::<_, Error>(json!({ K::ONE: view.await? }))
    };
    Ok(Json(answer.await.for_service(Service::Network)?).into_response())
}

pub(super) async fn delete<K: Kind>(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    expected: Expected,
) -> Result<StatusCode, Fault> {
    let answer = async {
        let id = id_of::<K>(&id)?;
        let actor = ctx.user_id.clone();
        state
            .cloud
            .store
            .write(&actor, move |conn| {
                if expected.0.is_some() {
                    expected.check(K::meta(&K::get(conn, &ctx, id)?).revision)?;
                }
                K::delete(conn, &ctx, id)
            })
            .await
    };
    answer.await.for_service(Service::Network)?;
    Ok(StatusCode::NO_CONTENT)
}
