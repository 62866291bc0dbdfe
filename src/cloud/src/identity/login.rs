//! Proving who one is, and choosing what a token is for.

use rusqlite::{OptionalExtension, params};
use serde::Deserialize;
use uuid::Uuid;

use super::token::{Claims, METHODS, Target};
use super::{Secret, micros, now, unauthorized, whole_seconds};
use crate::{Cloud, Error, Result};

/// The body of `POST /v3/auth/tokens`, inside `auth`.
#[derive(Debug, Clone, Deserialize)]
pub struct Login {
    /// Who one is.
    pub identity: Proof,
    /// What the token shall be for; without it: the user's default project, or nothing.
    #[serde(default)]
    pub scope: Option<ScopeChoice>,
}

/// Methods, each with what it needs.
#[derive(Debug, Clone, Deserialize)]
pub struct Proof {
    /// Names of [`METHODS`]; all that are named must succeed, for the same user.
    pub methods: Vec<String>,
    /// For `password`.
    #[serde(default)]
    pub password: Option<PasswordProof>,
    /// For `token`.
    #[serde(default)]
    pub token: Option<TokenProof>,
    /// For `application_credential`.
    #[serde(default)]
    pub application_credential: Option<CredentialProof>,
}

/// A user and its password.
#[derive(Debug, Clone, Deserialize)]
pub struct PasswordProof {
    /// Who.
    pub user: UserPassword,
}

/// A user by id, or by name and domain.
#[derive(Debug, Clone, Deserialize)]
pub struct UserPassword {
    /// Its id.
    #[serde(default)]
    pub id: Option<String>,
    /// Its name; then the domain is needed.
    #[serde(default)]
    pub name: Option<String>,
    /// Its domain.
    #[serde(default)]
    pub domain: Option<Ref>,
    /// Its password.
    #[serde(default)]
    pub password: Option<Secret>,
}

/// Another token.
#[derive(Debug, Clone, Deserialize)]
pub struct TokenProof {
    /// The token itself.
    pub id: Secret,
}

/// An application credential by id, or by name and user.
#[derive(Debug, Clone, Deserialize)]
pub struct CredentialProof {
    /// Its id.
    #[serde(default)]
    pub id: Option<String>,
    /// Its name; then the user is needed.
    #[serde(default)]
    pub name: Option<String>,
    /// Its owner.
    #[serde(default)]
    pub user: Option<UserPassword>,
    /// Its secret.
    pub secret: Secret,
}

/// Something by id or name.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Ref {
    /// Its id.
    #[serde(default)]
    pub id: Option<String>,
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
}

/// What a token shall be for: `"unscoped"` or one of the others.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum ScopeChoice {
    /// `"unscoped"`.
    Word(String),
    /// `{"project": …}` and so on.
    Fields(ScopeFields),
}

/// One of these.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScopeFields {
    /// A project.
    #[serde(default)]
    pub project: Option<ProjectRef>,
    /// A domain.
    #[serde(default)]
    pub domain: Option<Ref>,
    /// The system.
    #[serde(default)]
    pub system: Option<SystemRef>,
    /// Nothing; it may be empty.
    #[serde(default)]
    pub unscoped: Option<serde_json::Value>,
}

/// A project by id, or by name and domain.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ProjectRef {
    /// Its id.
    #[serde(default)]
    pub id: Option<String>,
    /// Its name; then the domain is needed.
    #[serde(default)]
    pub name: Option<String>,
    /// Its domain.
    #[serde(default)]
    pub domain: Option<Ref>,
}

/// `{"all": true}`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct SystemRef {
    /// There is nothing but the whole.
    #[serde(default)]
    pub all: Option<bool>,
}

/// What the proofs amount to.
struct Proved {
    user_id: String,
    methods: u8,
    /// From an exchanged token: its end, the chain's first id.
    exchanged: Option<(i64, [u8; 16])>,
    credential: Option<(String, String)>,
}

/// A token for whoever proves to be somebody. Whatever is wrong with the proof is one and the same 401.
///
/// # Errors
/// 401, 400 for a request that makes no sense, 503 if too many log in at once.
pub async fn login(cloud: &Cloud, login: &Login) -> Result<(String, Claims)> {
    let proved = prove(cloud, &login.identity).await?;
    let scope = choose_scope(cloud, &proved, login.scope.as_ref()).await?;
    let issued_at = now();
    let lifetime_end = whole_seconds(issued_at + micros(super::TOKEN_LIFETIME));
    let credential_end = proved.credential.as_ref().and_then(|(id, _)| {
        let directory = cloud.identity.directory();
        directory
            .credentials
            .get(id)
            .and_then(|credential| credential.expires_at)
    });
    let claims = Claims {
        user_id: proved.user_id,
        scope,
        methods: proved.methods,
        issued_at,
        // An exchanged token lives no longer than the one that it came from.
        expires_at: lifetime_end
            .min(proved.exchanged.map_or(i64::MAX, |(end, _)| end))
            .min(credential_end.map_or(i64::MAX, whole_seconds)),
        audit_id: *Uuid::new_v4().as_bytes(),
        parent_audit_id: proved.exchanged.map(|(_, first)| first),
        credential: proved.credential.map(|(id, _)| id),
    };
    cloud.identity.seal(claims)
}

async fn prove(cloud: &Cloud, proof: &Proof) -> Result<Proved> {
    let missing = |method: &str| Error::BadRequest(format!("Expecting to find {method} in identity."));
    let mut all: Option<Proved> = None;
    if proof.methods.is_empty() || proof.methods.len() > METHODS.len() {
        return Err(Error::BadRequest(
            "Expecting to find one to three methods in identity.".into(),
        ));
    }
    for method in &proof.methods {
        let bit = METHODS.iter().position(|known| known == method);
        // Keystone answers an unknown method so, too.
        let bit =
            bit.ok_or_else(|| Error::Unauthorized(format!("Unsupported authentication method: {method}.")))?;
        let mut proved = match method.as_str() {
            "password" => {
                password(
                    cloud,
                    &proof.password.as_ref().ok_or_else(|| missing(method))?.user,
                )
                .await?
            }
            "token" => token(cloud, proof.token.as_ref().ok_or_else(|| missing(method))?)?,
            _ => {
                credential(
                    cloud,
                    proof
                        .application_credential
                        .as_ref()
                        .ok_or_else(|| missing(method))?,
                )
                .await?
            }
        };
        proved.methods |= 1 << bit;
        all = Some(match all {
            None => proved,
            Some(before) if before.user_id != proved.user_id => return Err(unauthorized()),
            Some(before) => Proved {
                user_id: before.user_id,
                methods: before.methods | proved.methods,
                exchanged: before.exchanged.or(proved.exchanged),
                credential: before.credential.or(proved.credential),
            },
        });
    }
    all.ok_or_else(unauthorized)
}

async fn password(cloud: &Cloud, user: &UserPassword) -> Result<Proved> {
    let password = user.password.clone();
    let password = password.ok_or_else(|| Error::BadRequest("Expecting to find password in user.".into()))?;
    let (id, name) = (user.id.clone(), user.name.clone());
    let domain = user.domain.clone().unwrap_or_default();
    if id.is_none() && (name.is_none() || (domain.id.is_none() && domain.name.is_none())) {
        return Err(Error::BadRequest(
            "Expecting to find the user's id, or its name and domain.".into(),
        ));
    }
    let row: Option<(String, Option<String>)> = cloud
        .store
        .read(move |conn| {
            let sql = "SELECT id, password_hash FROM users WHERE (?1 IS NULL OR id = ?1) AND (?2 IS NULL OR name = ?2)
                 AND (?3 IS NULL OR domain_id = ?3)
                 AND (?4 IS NULL OR domain_id = (SELECT id FROM domains WHERE name = ?4)) LIMIT 1";
            // By id nothing else counts, as in Keystone.
            let (name, domain) = if id.is_some() { (None, Default::default()) } else { (name, domain) };
            let mut sql = conn.prepare_cached(sql)?;
            let row = sql.query_row(params![id, name, domain.id, domain.name], |r| Ok((r.get(0)?, r.get(1)?)));
            Ok::<_, Error>(row.optional()?)
        })
        .await?;
    let (id, hash) = row.unzip();
    let right = cloud.identity.hasher.verify(password, hash.flatten()).await?;
    if let Some(id) = &id {
        if !right {
            cloud.identity.count_failure(id, &cloud.config.accounts);
        } else if cloud.identity.is_locked(id) {
            return Err(unauthorized());
        } else {
            cloud.identity.forget_failures(id);
        }
    }
    if !right {
        return Err(unauthorized());
    }
    Ok(Proved {
        user_id: id.ok_or_else(unauthorized)?,
        methods: 0,
        exchanged: None,
        credential: None,
    })
}

fn token(cloud: &Cloud, proof: &TokenProof) -> Result<Proved> {
    // Where the token is the proof, Keystone says that it is not there, and clients tell this from a wrong password.
    let claims = cloud.identity.claims(proof.id.expose());
    let claims = claims.map_err(|_| Error::Named {
        name: "TokenNotFound",
        kind: crate::error::Kind::NotFound,
        message: "Failed to validate token".into(),
    })?;
    let credential = claims.credential.as_ref().map(|id| {
        let directory = cloud.identity.directory();
        let project = directory
            .credentials
            .get(id)
            .map(|c| c.project_id.clone())
            .unwrap_or_default();
        (id.clone(), project)
    });
    Ok(Proved {
        user_id: claims.user_id,
        methods: claims.methods,
        exchanged: Some((
            claims.expires_at,
            claims.parent_audit_id.unwrap_or(claims.audit_id),
        )),
        credential,
    })
}

async fn credential(cloud: &Cloud, proof: &CredentialProof) -> Result<Proved> {
    let (id, name) = (proof.id.clone(), proof.name.clone());
    let user = proof.user.as_ref();
    let (user_id, user_name) = (user.and_then(|u| u.id.clone()), user.and_then(|u| u.name.clone()));
    let domain = user.and_then(|u| u.domain.clone()).unwrap_or_default();
    if id.is_none() {
        let whose =
            user_id.is_some() || (user_name.is_some() && (domain.id.is_some() || domain.name.is_some()));
        if name.is_none() || !whose {
            let text = "Expecting to find the application credential's id, or its name and user.";
            return Err(Error::BadRequest(text.into()));
        }
    }
    let row: Option<(String, String, String, String)> = cloud
        .store
        .read(move |conn| {
            let sql = "SELECT c.id, c.user_id, c.project_id, c.secret_hash FROM application_credentials c
                 JOIN users u ON u.id = c.user_id
                 WHERE (?1 IS NULL OR c.id = ?1) AND (?2 IS NULL OR c.name = ?2) AND (?3 IS NULL OR u.id = ?3)
                 AND (?4 IS NULL OR u.name = ?4) AND (?5 IS NULL OR u.domain_id = ?5)
                 AND (?6 IS NULL OR u.domain_id = (SELECT id FROM domains WHERE name = ?6)) LIMIT 1";
            let mut sql = conn.prepare_cached(sql)?;
            let values = params![id, name, user_id, user_name, domain.id, domain.name];
            let row = sql.query_row(values, |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)));
            Ok::<_, Error>(row.optional()?)
        })
        .await?;
    let stored = row.as_ref().map(|row| row.3.clone());
    if !cloud.identity.hasher.verify(proof.secret.clone(), stored).await? {
        return Err(unauthorized());
    }
    let (id, user_id, project_id, _) = row.ok_or_else(unauthorized)?;
    Ok(Proved {
        user_id,
        methods: 0,
        exchanged: None,
        credential: Some((id, project_id)),
    })
}

/// The target that a client asked for. That the user has a role on it is checked when the token is sealed.
async fn choose_scope(cloud: &Cloud, proved: &Proved, choice: Option<&ScopeChoice>) -> Result<Target> {
    let bad = |text: &str| Err(Error::BadRequest(text.into()));
    let asked = match choice {
        None => None,
        Some(ScopeChoice::Word(word)) if word == "unscoped" => Some(Target::Unscoped),
        Some(ScopeChoice::Word(_)) => return bad("The scope is neither an object nor \"unscoped\"."),
        Some(ScopeChoice::Fields(fields)) => match fields {
            ScopeFields {
                project: Some(project),
                domain: None,
                system: None,
                unscoped: None,
            } => Some(Target::Project(project_id(cloud, project).await?)),
            ScopeFields {
                project: None,
                domain: Some(domain),
                system: None,
                unscoped: None,
            } => Some(Target::Domain(domain_id(cloud, domain)?)),
            ScopeFields {
                project: None,
                domain: None,
                system: Some(system),
                unscoped: None,
            } => {
                if system.all != Some(true) {
                    return bad("The system's scope is {\"all\": true}.");
                }
                Some(Target::System)
            }
            ScopeFields {
                project: None,
                domain: None,
                system: None,
                unscoped: Some(_),
            } => Some(Target::Unscoped),
            ScopeFields {
                project: None,
                domain: None,
                system: None,
                unscoped: None,
            } => None,
            _ => return bad("A token has one scope: name a project, a domain or the system."),
        },
    };
    if let Some((_, project)) = &proved.credential {
        // An application credential opens one project and nothing else.
        return match asked {
            None => Ok(Target::Project(project.clone())),
            Some(Target::Project(asked)) if asked == *project => Ok(Target::Project(asked)),
            Some(_) => Err(unauthorized()),
        };
    }
    if let Some(asked) = asked {
        return Ok(asked);
    }
    let directory = cloud.identity.directory();
    let default = directory
        .users
        .get(&proved.user_id)
        .and_then(|user| user.default_project_id.clone());
    Ok(match default {
        Some(id)
            if directory.active_project(&id).is_some()
                && !directory
                    .roles_on(&proved.user_id, &Target::Project(id.clone()))
                    .is_empty() =>
        {
            Target::Project(id)
        }
        _ => Target::Unscoped,
    })
}

async fn project_id(cloud: &Cloud, project: &ProjectRef) -> Result<String> {
    if let Some(id) = &project.id {
        return Ok(id.clone());
    }
    let (Some(name), Some(domain)) = (project.name.clone(), &project.domain) else {
        return Err(Error::BadRequest(
            "Expecting to find the project's id, or its name and domain.".into(),
        ));
    };
    let domain = domain_id(cloud, domain)?;
    let found = cloud.store.read(move |conn| {
        let mut sql = conn.prepare_cached("SELECT id FROM projects WHERE domain_id = ?1 AND name = ?2")?;
        Ok::<Option<String>, Error>(sql.query_row([domain, name], |row| row.get(0)).optional()?)
    });
    found.await?.ok_or_else(unauthorized)
}

fn domain_id(cloud: &Cloud, domain: &Ref) -> Result<String> {
    match (&domain.id, &domain.name) {
        (Some(id), _) => Ok(id.clone()),
        (None, Some(name)) => {
            let directory = cloud.identity.directory();
            let found = directory.domains.iter().find(|(_, domain)| domain.name == *name);
            found.map(|(id, _)| id.clone()).ok_or_else(unauthorized)
        }
        (None, None) => Err(Error::BadRequest(
            "Expecting to find the domain's id or name.".into(),
        )),
    }
}
