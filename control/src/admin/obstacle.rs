//! What `status` says of a peer that no lane leads to from one node to the other: why not.

use serde::{Deserialize, Serialize};

/// What keeps a peer from being reached directly by lanes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ObstacleStatus {
    /// Its stable name; `docs/cli.md` lists them.
    pub code: String,
    /// The same in a sentence, with the way that packets take instead: a text for people.
    pub text: String,
}
