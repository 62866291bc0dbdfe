//! `/v3/auth`: tokens, and where one may go with them.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use cloud::identity::login::{Login, login};
use cloud::identity::token::Claims;
use cloud::identity::tokens::{self, Described, DescribedScope, Named};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, catalog, no_content, shape};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

#[derive(Deserialize)]
pub(super) struct Body {
    auth: Login,
}

/// The catalog is left out if `nocatalog` is in the query, with whatever value.
fn wants_catalog(pairs: &Pairs) -> bool {
    pairs.get("nocatalog").is_none()
}

pub(super) async fn issue(State(state): State<AppState>, pairs: Pairs, Json(body): Json<Body>) -> Answer {
    let (token, claims) = login(&state.cloud, &body.auth).await?;
    with_subject(
        &state,
        StatusCode::CREATED,
        &token,
        &claims,
        wants_catalog(&pairs),
    )
}

fn subject(headers: &HeaderMap) -> Result<&str, cloud::Error> {
    let subject = headers
        .get("x-subject-token")
        .and_then(|value| value.to_str().ok());
    subject.ok_or_else(|| cloud::Error::BadRequest("Expecting to find the header X-Subject-Token.".into()))
}

pub(super) async fn validate(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    pairs: Pairs,
    headers: HeaderMap,
) -> Answer {
    let subject = subject(&headers)?;
    let claims = tokens::inspect(&state.cloud, &ctx, subject)?;
    with_subject(&state, StatusCode::OK, subject, &claims, wants_catalog(&pairs))
}

pub(super) async fn revoke(State(state): State<AppState>, Auth(ctx): Auth, headers: HeaderMap) -> Answer {
    tokens::revoke(&state.cloud, &ctx, subject(&headers)?).await?;
    Ok(no_content())
}

fn with_subject(state: &AppState, status: StatusCode, token: &str, claims: &Claims, catalog: bool) -> Answer {
    let body = body(state, &tokens::describe(&state.cloud, claims)?, catalog);
    let mut response: Response = (status, Json(json!({"token": body}))).into_response();
    if let Ok(mut value) = HeaderValue::from_str(token) {
        value.set_sensitive(true);
        response.headers_mut().insert("x-subject-token", value);
    }
    Ok(response)
}

fn body(state: &AppState, token: &Described, with_catalog: bool) -> Value {
    let named = |named: &Named| json!({"id": named.id, "name": named.name});
    let mut body = json!({
        "methods": token.methods,
        "user": {
            "id": token.user.id,
            "name": token.user.name,
            "domain": named(&token.user_domain),
            "password_expires_at": null,
        },
        "audit_ids": token.audit_ids,
        "issued_at": shape::time(token.issued_at),
        "expires_at": shape::time(token.expires_at),
    });
    match &token.scope {
        DescribedScope::Unscoped => return body,
        DescribedScope::Project(project, domain) => {
            body["project"] = json!({"id": project.id, "name": project.name, "domain": named(domain)});
            body["is_domain"] = false.into();
        }
        DescribedScope::Domain(domain) => body["domain"] = named(domain),
        DescribedScope::System => body["system"] = json!({"all": true}),
    }
    body["roles"] = token.roles.iter().map(named).collect();
    if let Some((credential, restricted)) = &token.credential {
        body["application_credential"] =
            json!({"id": credential.id, "name": credential.name, "restricted": restricted});
    }
    if with_catalog {
        body["catalog"] = catalog::all(state);
    }
    body
}

pub(super) async fn projects(State(state): State<AppState>, Auth(ctx): Auth, pairs: Pairs) -> Answer {
    let projects = cloud::identity::projects::of_user(&state.cloud, &ctx, &ctx.user_id).await?;
    Ok(shape::list(
        &state,
        "auth/projects",
        &pairs,
        projects,
        shape::project,
    )?)
}

pub(super) async fn domains(State(state): State<AppState>, Auth(ctx): Auth, pairs: Pairs) -> Answer {
    let domains = cloud::identity::roles::domains_of_user(&state.cloud, &ctx).await?;
    Ok(shape::list(
        &state,
        "auth/domains",
        &pairs,
        domains,
        shape::domain,
    )?)
}

pub(super) async fn system(State(state): State<AppState>, Auth(ctx): Auth) -> Answer {
    let system = cloud::identity::roles::has_system(&state.cloud, &ctx);
    let list = if system { json!([{"all": true}]) } else { json!([]) };
    let this = shape::url(&state, "auth/system");
    Ok(
        Json(json!({"system": list, "links": {"self": this, "next": null, "previous": null}}))
            .into_response(),
    )
}
