//! What Keystone tells about a token, and tokens that are ended by hand.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rusqlite::params;

use super::rights;
use super::token::{Claims, Target};
use crate::context::Scope;
use crate::{Cloud, Context, Error, Result};

/// An id and a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The id.
    pub id: String,
    /// The name.
    pub name: String,
}

/// Everything that Keystone tells about a token, except the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Whose it is.
    pub user: Named,
    /// The user's domain.
    pub user_domain: Named,
    /// What it is for.
    pub scope: DescribedScope,
    /// Roles on the scope.
    pub roles: Vec<Named>,
    /// How the user proved who it is.
    pub methods: Vec<&'static str>,
    /// Its own id, and that of the first token in its chain.
    pub audit_ids: Vec<String>,
    /// Microseconds since 1970.
    pub issued_at: i64,
    /// Microseconds since 1970.
    pub expires_at: i64,
    /// The application credential, and whether it is restricted.
    pub credential: Option<(Named, bool)>,
}

/// A scope with its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DescribedScope {
    /// None.
    Unscoped,
    /// A project and its domain.
    Project(Named, Named),
    /// A domain.
    Domain(Named),
    /// The whole system.
    System,
}

/// All about a valid token.
///
/// # Errors
/// 401 if it is not valid any more.
pub fn describe(cloud: &Cloud, claims: &Claims) -> Result<Described> {
    let directory = cloud.identity.directory();
    super::check(&directory, claims, super::now())?;
    let gone = super::unauthorized;
    let domain = |id: &str| {
        let domain = directory.domains.get(id).ok_or_else(gone)?;
        Ok::<_, Error>(Named {
            id: id.to_owned(),
            name: domain.name.clone(),
        })
    };
    let user = directory.users.get(&claims.user_id).ok_or_else(gone)?;
    let scope = match &claims.scope {
        Target::Unscoped => DescribedScope::Unscoped,
        Target::Project(id) => {
            let project = directory.projects.get(id).ok_or_else(gone)?;
            let named = Named {
                id: id.clone(),
                name: project.name.clone(),
            };
            DescribedScope::Project(named, domain(&project.domain_id)?)
        }
        Target::Domain(id) => DescribedScope::Domain(domain(id)?),
        Target::System => DescribedScope::System,
    };
    let ids = super::role_ids(&directory, claims, super::now())?;
    let roles = ids.into_iter().filter_map(|id| {
        directory.roles.get(&id).map(|name| Named {
            name: name.clone(),
            id,
        })
    });
    let credential = claims.credential.as_ref().and_then(|id| {
        let credential = directory.credentials.get(id)?;
        Some((
            Named {
                id: id.clone(),
                name: credential.name.clone(),
            },
            !credential.unrestricted,
        ))
    });
    let audit_ids = std::iter::once(claims.audit_id).chain(claims.parent_audit_id);
    Ok(Described {
        user: Named {
            id: claims.user_id.clone(),
            name: user.name.clone(),
        },
        user_domain: domain(&user.domain_id)?,
        scope,
        roles: roles.collect(),
        methods: claims.method_names(),
        audit_ids: audit_ids.map(|id| URL_SAFE_NO_PAD.encode(id)).collect(),
        issued_at: claims.issued_at,
        expires_at: claims.expires_at,
        credential,
    })
}

/// The claims of a token that someone shows to ask about it: its own user may, an administrator, and whoever reads
/// the system (services).
///
/// # Errors
/// 404 if it is not valid, 403.
pub fn inspect(cloud: &Cloud, ctx: &Context, subject: &str) -> Result<Claims> {
    let claims = cloud
        .identity
        .claims(subject)
        .map_err(|_| Error::not_found("token", "(not shown)"))?;
    let system = ctx.scope == Scope::System && ctx.has_role("reader");
    if claims.user_id == ctx.user_id || ctx.is_admin() || system {
        return Ok(claims);
    }
    Err(rights::forbidden("tokens", "validate"))
}

/// Ends a token before its time.
///
/// # Errors
/// 404 if it is not valid, 403.
pub async fn revoke(cloud: &Cloud, ctx: &Context, subject: &str) -> Result<()> {
    let claims = inspect(cloud, ctx, subject)?;
    if claims.user_id != ctx.user_id && !ctx.is_admin() {
        return Err(rights::forbidden("tokens", "revoke"));
    }
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            conn.execute(
                "INSERT OR IGNORE INTO token_revocations (audit_id, expires_at) VALUES (?1, ?2)",
                params![&claims.audit_id[..], claims.expires_at],
            )?;
            Ok(())
        })
        .await
}
