//! Authentication of every listener: named keys with scopes, and the required scope of each route.
//!
//! ```text
//! head of a request -> table of routes: scope -> credential: key, token, JWT -> Actor, or 401, 403
//! ```

mod file;
mod guard;
mod jwt;
mod key;
mod local;
mod routes;
mod scope;
mod session;
mod trail;

pub use file::{KeyFile, change, read};
pub use guard::{Actor, Change, Credential, Guard, Mode, SignedIn};
pub use jwt::{Jwt, Settings as JwtSettings};
pub use key::Key;
pub use local::{collect as collect_records, leave as leave_record};
pub use routes::{Access, Table};
pub use scope::Scope;
pub use session::CODE_LASTS;
pub use trail::{Record, Records, STREAM as AUDIT_STREAM, Trail, store as store_records};

/// The name of the key file in the data folder.
pub const KEY_FILE: &str = "keys.json";
