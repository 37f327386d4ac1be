//! `[[pools]]` of `remuda.toml`: what this node is to keep.
//!
//! A pool either names a model, and the node starts the engines, or URLs of engines that run already.

use std::path::PathBuf;

use engine_provisioner::recipe::{Recipe, RecipeError};
use engine_provisioner::{EngineSpec, SpecError};
use http::HeaderValue;
use pool_registry_types::{Dialect, PoolId, PoolKind, ReplicaId};
use serde::Deserialize;
use upstream::Origin;

use crate::agents::{self, AgentPool, AgentPoolProblem, AgentsConfig, LimitSettings};
use crate::attend::SLOTS_DEFAULT;

/// The most replicas of one pool on one node.
pub(crate) const REPLICAS_MAX: u32 = 64;
/// A key file is a line.
const KEY_BYTES_MAX: u64 = 16 * 1024;

/// One `[[pools]]` as it is written.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct PoolSettings {
    /// The pool's name.
    pub id: PoolId,
    /// The engine recipe.
    #[serde(default = "default_engine")]
    pub engine: String,
    /// The model: a path, `hf:ORG/REPO/FILE`, `https:...`, or a name in the store. The node starts the engines.
    pub model: Option<String>,
    /// The name by which clients ask for the model.
    pub model_name: Option<String>,
    /// Other names by which clients may ask for it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// How many engines to keep.
    pub replicas: Option<u32>,
    /// Tasks at once in each engine.
    pub slots: Option<u32>,
    /// Tokens that one task may hold; 0 is the model's own.
    #[serde(default)]
    pub context_length: u32,
    /// Threads that each engine computes on.
    pub threads: Option<u32>,
    /// GPUs that the pool may use, by the driver's index. None: those of the settings.
    pub gpus: Option<Vec<u32>>,
    /// Whether `/v1/embeddings` is wanted.
    #[serde(default)]
    pub embeddings: bool,
    /// Whether its model takes pictures and sound. None: as the engine says, or else its recipe.
    pub media: Option<bool>,
    /// Other features of the recipe.
    #[serde(default)]
    pub features: Vec<String>,
    /// Arguments to add to the engine's command line.
    #[serde(default)]
    pub extra_args: Vec<String>,
    /// An engine that runs already.
    pub url: Option<String>,
    /// Several engines that run already.
    #[serde(default)]
    pub urls: Vec<String>,
    /// The environment variable that holds the key of engines that run already.
    pub api_key_env: Option<String>,
    /// The file that holds the key of engines that run already.
    pub api_key_file: Option<PathBuf>,
    /// What the pool is made of. The keys below are for agents.
    #[serde(default)]
    pub kind: PoolKind,
    /// The agent's profile.
    pub agent: Option<String>,
    /// What makes its sandboxes.
    pub driver: Option<String>,
    /// The image of its sandboxes, where the driver needs one.
    pub image: Option<String>,
    /// How many sandboxes to keep warm.
    pub warm: Option<usize>,
    /// Runs at once.
    pub runs_max: Option<u32>,
    /// Further hosts that its sandboxes may connect to.
    #[serde(default)]
    pub allowed_hosts: Vec<String>,
    /// Networks other than the open internet in which allowed hosts may be.
    #[serde(default)]
    pub allowed_networks: Vec<String>,
    /// What each of its sandboxes may use.
    pub limits: Option<LimitSettings>,
}

/// One pool, checked.
#[derive(Clone, Debug)]
pub struct Pool {
    /// The pool's name.
    pub id: PoolId,
    /// How its engines are probed and spoken to.
    pub recipe: Recipe,
    /// What its engines speak.
    pub dialects: Vec<Dialect>,
    /// Tasks at once in each engine, as the settings say.
    pub slots: Option<u32>,
    /// Whether its model takes pictures and sound, as the settings say.
    pub media: Option<bool>,
    /// Other names for its model.
    pub aliases: Vec<String>,
    /// GPUs that it may use. None: those of the settings.
    pub gpus: Option<Vec<u32>>,
    /// Where its engines come from.
    pub engines: Engines,
}

/// Where a pool's engines come from.
#[derive(Clone, Debug)]
pub enum Engines {
    /// The node starts them.
    Kept {
        /// What each is to be; the replica's name is put in for each.
        spec: Box<EngineSpec>,
        /// How many.
        replicas: u32,
    },
    /// They run already.
    Running {
        /// Where, by replica.
        origins: Vec<(ReplicaId, Origin)>,
        /// The key that they want, as a header.
        key: Option<HeaderValue>,
    },
}

/// What is wrong with the pools in the settings. Exit code 64.
#[derive(Debug, thiserror::Error)]
#[error("[[pools]] {pool}: {problem}")]
pub struct PoolsError {
    /// Which pool.
    pub pool: PoolId,
    /// What is wrong.
    #[source]
    pub problem: PoolProblem,
}

/// What is wrong with one pool.
#[derive(Debug, thiserror::Error)]
pub enum PoolProblem {
    /// Two pools of one name.
    #[error("two pools have this `id`")]
    Twice,
    /// No engines.
    #[error("needs `model` (the node starts the engine), or `url` or `urls` (it runs already)")]
    NoEngines,
    /// Two kinds of engines.
    #[error("`{0}` is for pools with `model`, and this pool has `url`")]
    OnlyWithModel(&'static str),
    /// A key for engines that the node starts.
    #[error("`{0}` is for pools with `url` or `urls`, and this pool has `model`")]
    OnlyWithUrl(&'static str),
    /// Too many replicas.
    #[error("`replicas` is {0}; 1 to {REPLICAS_MAX} are possible")]
    Replicas(u32),
    /// Too many or no slots.
    #[error("`slots` is {0}; 1 to {max} are possible", max = crate::probe::SLOTS_MAX)]
    Slots(u32),
    /// A bad URL.
    #[error("`url`: {0}")]
    Url(#[from] upstream::OriginError),
    /// A bad recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A bad spec.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// No key where it should be.
    #[error("{0}")]
    Key(String),
    /// A bad agent pool.
    #[error(transparent)]
    Agent(#[from] AgentPoolProblem),
}

impl PoolSettings {
    /// A pool of this model with everything else as it comes.
    pub fn with_model(id: PoolId, model: impl Into<String>) -> Self {
        Self {
            id,
            engine: default_engine(),
            model: Some(model.into()),
            model_name: None,
            aliases: Vec::new(),
            replicas: None,
            slots: None,
            context_length: 0,
            threads: None,
            gpus: None,
            embeddings: false,
            media: None,
            features: Vec::new(),
            extra_args: Vec::new(),
            url: None,
            urls: Vec::new(),
            api_key_env: None,
            api_key_file: None,
            kind: PoolKind::Engine,
            agent: None,
            driver: None,
            image: None,
            warm: None,
            runs_max: None,
            allowed_hosts: Vec::new(),
            allowed_networks: Vec::new(),
            limits: None,
        }
    }

    /// A pool of this agent with everything else as it comes.
    pub fn with_agent(id: PoolId, agent: impl Into<String>) -> Self {
        Self {
            kind: PoolKind::Agent,
            agent: Some(agent.into()),
            model: None,
            ..Self::with_model(id, "")
        }
    }

    /// The name of a key that is set and means something for engines only.
    pub(crate) fn set_for_engines(&self) -> Option<&'static str> {
        let set = [
            (self.engine != default_engine(), "engine"),
            (self.model.is_some(), "model"),
            (self.model_name.is_some(), "model_name"),
            (!self.aliases.is_empty(), "aliases"),
            (self.replicas.is_some(), "replicas"),
            (self.slots.is_some(), "slots"),
            (self.context_length != 0, "context_length"),
            (self.threads.is_some(), "threads"),
            (self.gpus.is_some(), "gpus"),
            (self.embeddings, "embeddings"),
            (self.media.is_some(), "media"),
            (!self.features.is_empty(), "features"),
            (!self.extra_args.is_empty(), "extra_args"),
            (self.url.is_some(), "url"),
            (!self.urls.is_empty(), "urls"),
            (self.api_key_env.is_some(), "api_key_env"),
            (self.api_key_file.is_some(), "api_key_file"),
        ];
        set.into_iter().find_map(|(is_set, name)| is_set.then_some(name))
    }

    /// The name of a key that is set and means something for agents only.
    fn set_for_agents(&self) -> Option<&'static str> {
        let set = [
            (self.agent.is_some(), "agent"),
            (self.driver.is_some(), "driver"),
            (self.image.is_some(), "image"),
            (self.warm.is_some(), "warm"),
            (self.runs_max.is_some(), "runs_max"),
            (!self.allowed_hosts.is_empty(), "allowed_hosts"),
            (!self.allowed_networks.is_empty(), "allowed_networks"),
            (self.limits.is_some(), "limits"),
        ];
        set.into_iter().find_map(|(is_set, name)| is_set.then_some(name))
    }

    /// Checks one pool. Reads its recipe and its key.
    fn check(self, recipes: Option<&std::path::Path>) -> Result<Pool, PoolProblem> {
        if let Some(name) = self.set_for_agents() {
            return Err(AgentPoolProblem::OnlyWithAgent(name).into());
        }
        let recipe = Recipe::load(&self.engine, recipes)?;
        let mut features = self.features.clone();
        if self.embeddings && !features.iter().any(|feature| feature == "embeddings") && self.model.is_some()
        {
            features.push("embeddings".to_owned());
        }
        if let Some(slots) = self
            .slots
            .filter(|slots| *slots == 0 || *slots > crate::probe::SLOTS_MAX)
        {
            return Err(PoolProblem::Slots(slots));
        }
        let mut dialects = recipe.dialects_with(&features);
        if self.embeddings && !dialects.contains(&Dialect::Embeddings) {
            dialects.push(Dialect::Embeddings);
        }
        let (gpus, media) = (self.gpus.clone(), self.media);
        let (id, slots, aliases) = (self.id.clone(), self.slots, self.aliases.clone());
        let engines = if self.model.is_some() {
            self.kept(&recipe, features)?
        } else {
            self.running()?
        };
        Ok(Pool {
            id,
            recipe,
            dialects,
            slots,
            media,
            aliases,
            gpus,
            engines,
        })
    }

    fn kept(self, recipe: &Recipe, features: Vec<String>) -> Result<Engines, PoolProblem> {
        for (set, name) in [
            (self.api_key_env.is_some(), "api_key_env"),
            (self.api_key_file.is_some(), "api_key_file"),
        ] {
            if set {
                return Err(PoolProblem::OnlyWithUrl(name));
            }
        }
        if self.url.is_some() || !self.urls.is_empty() {
            return Err(PoolProblem::OnlyWithModel("model"));
        }
        let replicas = self.replicas.unwrap_or(1);
        if !(1..=REPLICAS_MAX).contains(&replicas) {
            return Err(PoolProblem::Replicas(replicas));
        }
        let first = replica_id(0);
        let mut spec = EngineSpec::new(self.id, first, self.model.unwrap_or_default());
        spec.recipe = self.engine;
        spec.model_name = self.model_name;
        spec.slots = self.slots.unwrap_or(SLOTS_DEFAULT);
        spec.context_length = self.context_length;
        spec.threads = self.threads;
        spec.device_mask = self.gpus.map(|gpus| device_mask(&gpus));
        spec.features = features;
        spec.extra_args = self.extra_args;
        spec.check(recipe)?;
        Ok(Engines::Kept {
            spec: Box::new(spec),
            replicas,
        })
    }

    fn running(self) -> Result<Engines, PoolProblem> {
        let unfit = [
            (self.model_name.is_some(), "model_name"),
            (self.replicas.is_some(), "replicas"),
            (self.context_length != 0, "context_length"),
            (self.threads.is_some(), "threads"),
            (!self.extra_args.is_empty(), "extra_args"),
            (!self.features.is_empty(), "features"),
        ];
        let urls: Vec<&String> = self.url.iter().chain(&self.urls).collect();
        if urls.is_empty() {
            return Err(PoolProblem::NoEngines);
        }
        if let Some((_, name)) = unfit.into_iter().find(|(set, _)| *set) {
            return Err(PoolProblem::OnlyWithModel(name));
        }
        if urls.len() > REPLICAS_MAX as usize {
            return Err(PoolProblem::Replicas(
                u32::try_from(urls.len()).unwrap_or(u32::MAX),
            ));
        }
        let mut origins = Vec::new();
        for (at, url) in (0..).zip(urls) {
            // People write the address as OpenAI's clients want it; every path that is asked for brings its own /v1.
            let trimmed = url.trim_end_matches('/');
            let trimmed = trimmed.strip_suffix("/v1").unwrap_or(trimmed);
            origins.push((replica_id(at), trimmed.parse()?));
        }
        let key = read_key(self.api_key_env.as_deref(), self.api_key_file.as_deref())?;
        Ok(Engines::Running { origins, key })
    }
}

/// Checks all pools: those with engines, and those with agents.
pub(crate) fn check_pools(
    settings: Vec<PoolSettings>,
    recipes: Option<&std::path::Path>,
    agents: &AgentsConfig,
) -> Result<(Vec<Pool>, Vec<AgentPool>), PoolsError> {
    let mut engine_pools: Vec<Pool> = Vec::with_capacity(settings.len());
    let mut agent_pools: Vec<AgentPool> = Vec::new();
    for pool in settings {
        let id = pool.id.clone();
        let wrong = |problem| PoolsError {
            pool: id.clone(),
            problem,
        };
        if engine_pools.iter().any(|known| known.id == id) || agent_pools.iter().any(|known| known.id == id) {
            return Err(wrong(PoolProblem::Twice));
        }
        match pool.kind {
            PoolKind::Engine => engine_pools.push(pool.check(recipes).map_err(wrong)?),
            PoolKind::Agent => {
                let checked = agents::check(&pool, agents);
                agent_pools.push(checked.map_err(|problem| wrong(problem.into()))?);
            }
        }
    }
    Ok((engine_pools, agent_pools))
}

/// The name of a pool's replica.
pub(crate) fn replica_id(at: u32) -> ReplicaId {
    ReplicaId::new(format!("r{at}")).expect("a letter and digits are an identifier")
}

/// GPUs as `CUDA_VISIBLE_DEVICES` and the like take them.
pub(crate) fn device_mask(gpus: &[u32]) -> String {
    if gpus.is_empty() {
        return "none".to_owned();
    }
    gpus.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn read_key(
    variable: Option<&str>,
    file: Option<&std::path::Path>,
) -> Result<Option<HeaderValue>, PoolProblem> {
    use std::io::Read;
    let key = match (variable, file) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return Err(PoolProblem::Key(
                "`api_key_env` and `api_key_file` are both set; one is enough".to_owned(),
            ));
        }
        (Some(variable), None) => std::env::var(variable)
            .map_err(|_| PoolProblem::Key(format!("`api_key_env` names {variable}, which is not set")))?,
        (None, Some(path)) => {
            let failed =
                |error| PoolProblem::Key(format!("cannot read `api_key_file` {}: {error}", path.display()));
            let mut text = String::new();
            let file = std::fs::File::open(path).map_err(failed)?;
            file.take(KEY_BYTES_MAX)
                .read_to_string(&mut text)
                .map_err(failed)?;
            text
        }
    };
    let mut header = HeaderValue::from_str(&format!("Bearer {}", key.trim()))
        .map_err(|_| PoolProblem::Key("the key holds a character that no header may hold".to_owned()))?;
    header.set_sensitive(true);
    Ok(Some(header))
}

fn default_engine() -> String {
    "llamacpp".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct File {
        pools: Vec<PoolSettings>,
    }

    fn read(text: &str) -> Result<Vec<Pool>, String> {
        let file: File = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        let checked = check_pools(file.pools, None, &AgentsConfig::default());
        checked.map(|(pools, _)| pools).map_err(|error| error.to_string())
    }

    #[test]
    fn a_pool_with_a_model_becomes_a_spec() {
        let text = "[[pools]]\nid = 'chat'\nmodel = '/m.gguf'\nreplicas = 2\nslots = 8\ngpus = [0, 1]\nembeddings = true";
        let pool = read(text).unwrap().remove(0);
        assert!(pool.dialects.contains(&Dialect::Embeddings));
        let Engines::Kept { spec, replicas } = pool.engines else {
            panic!("it is to be kept")
        };
        assert_eq!(
            (replicas, spec.slots, spec.device_mask.as_deref()),
            (2, 8, Some("0,1"))
        );
        assert_eq!(
            (spec.recipe.as_str(), spec.features.as_slice()),
            ("llamacpp", &["embeddings".to_owned()][..])
        );
    }

    #[test]
    fn a_pool_with_urls_has_a_replica_for_each() {
        let text =
            "[[pools]]\nid = 'v'\nengine = 'vllm'\nurls = ['http://a:8000/v1/', 'https://b']\nslots = 32";
        let pool = read(text).unwrap().remove(0);
        let Engines::Running { origins, key } = pool.engines else {
            panic!("they run")
        };
        let shown: Vec<_> = origins
            .iter()
            .map(|(id, origin)| format!("{id} {}", origin.authority()))
            .collect();
        assert_eq!(shown, ["r0 a:8000", "r1 b:443"]);
        assert_eq!(origins[0].1.base_path(), "");
        assert!(key.is_none() && pool.slots == Some(32));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let check = |body: &str, expect: &str| {
            let text = format!("[[pools]]\nid = 'p'\n{body}");
            assert_eq!(read(&text).map(|_| ()).unwrap_err(), expect, "{body}");
        };
        let needs =
            "[[pools]] p: needs `model` (the node starts the engine), or `url` or `urls` (it runs already)";
        check("", needs);
        check(
            "model = 'm'\nreplicas = 0",
            "[[pools]] p: `replicas` is 0; 1 to 64 are possible",
        );
        check(
            "model = 'm'\nslots = 0",
            "[[pools]] p: `slots` is 0; 1 to 65536 are possible",
        );
        check(
            "url = 'http://h'\nreplicas = 2",
            "[[pools]] p: `replicas` is for pools with `model`, and this pool has `url`",
        );
        check(
            "model = 'm'\napi_key_env = 'K'",
            "[[pools]] p: `api_key_env` is for pools with `url` or `urls`, and this pool has `model`",
        );
        check(
            "url = 'http://h'\napi_key_env = 'REMUDA_NO_SUCH_NAME'",
            "[[pools]] p: `api_key_env` names REMUDA_NO_SUCH_NAME, which is not set",
        );
        check(
            "model = 'm'\n[[pools]]\nid = 'p'\nmodel = 'n'",
            "[[pools]] p: two pools have this `id`",
        );
        assert!(
            read("[[pools]]\nid = 'p'\nmodle = 'm'")
                .unwrap_err()
                .contains("unknown field `modle`")
        );
        assert!(
            read("[[pools]]\nid = 'p'\nengine = 'lama'\nmodel = 'm'")
                .unwrap_err()
                .contains("no engine recipe")
        );
        assert!(read("[[pools]]\nid = '../p'\nmodel = 'm'").is_err());
    }

    #[test]
    fn a_key_from_a_file_is_never_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "s3cret\n").unwrap();
        let key = read_key(None, Some(file.path())).unwrap().unwrap();
        assert_eq!(key.as_bytes(), b"Bearer s3cret");
        assert_eq!(format!("{key:?}"), "Sensitive");
    }
}
