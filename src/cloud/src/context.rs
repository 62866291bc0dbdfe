//! Who asks.

use uuid::Uuid;

/// The caller of one request, as its token says. A context exists only after its token was validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// `req-` and a UUID; in every log line and answer.
    pub request_id: String,
    /// The user's id (32 hexadecimal digits).
    pub user_id: String,
    /// The user's name.
    pub user_name: String,
    /// The id of the user's domain.
    pub user_domain_id: String,
    /// What the token is for.
    pub scope: Scope,
    /// Names of the roles on that scope, implied ones included.
    pub roles: Vec<String>,
    /// Set if an application credential was used: its id.
    pub application_credential: Option<String>,
}

/// What a token is for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Scope {
    /// Nothing: only "who am I" and "where may I go".
    Unscoped,
    /// A project.
    Project {
        /// Its id.
        id: String,
        /// Its domain's id.
        domain_id: String,
    },
    /// A domain.
    Domain {
        /// Its id.
        id: String,
    },
    /// The whole system.
    System,
}

impl Context {
    /// The daemon itself, for reconcilers and first set-up.
    pub fn system() -> Self {
        Context {
            request_id: format!("req-{}", Uuid::new_v4()),
            user_id: "allod".into(),
            user_name: "allod".into(),
            user_domain_id: "default".into(),
            scope: Scope::System,
            roles: vec!["admin".into(), "manager".into(), "member".into(), "reader".into()],
            application_credential: None,
        }
    }

    /// The caller holds this role on its scope.
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|r| r == role)
    }

    /// The caller may see and change every project's resources.
    pub fn is_admin(&self) -> bool {
        self.has_role("admin")
    }

    /// The project of the token, or 403: its resources are all that a tenant sees.
    pub fn project(&self) -> crate::Result<&str> {
        match &self.scope {
            Scope::Project { id, .. } => Ok(id),
            _ => Err(crate::Error::Forbidden(
                "this needs a token that is scoped to a project".into(),
            )),
        }
    }

    /// The caller may see resources of this project: its own, or any if it is admin.
    pub fn sees(&self, project_id: &str) -> bool {
        self.is_admin() || matches!(&self.scope, Scope::Project { id, .. } if id == project_id)
    }
}
