//! What differs from the control plane that most tests want.

/// What differs from the control plane that most tests want.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address that the API server listens on; a node or a pod needs another than loopback.
    pub bind_address: String,
    /// Further names or addresses that the serving certificate is valid for.
    pub server_names: Vec<String>,
    /// Further flags of kube-apiserver.
    pub api_server_args: Vec<String>,
    /// The controllers that run; each one is a second or more of a small machine's time.
    pub controllers: Vec<String>,
    /// Further flags of kube-controller-manager.
    pub controller_manager_args: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        let controllers = [
            "garbage-collector-controller",
            "namespace-controller",
            "resourcequota-controller",
            "root-ca-certificate-publisher-controller",
            "serviceaccount-controller",
            "serviceaccount-token-controller",
            "clusterrole-aggregation-controller",
        ];
        Options {
            bind_address: "127.0.0.1".into(),
            server_names: vec![],
            api_server_args: vec![],
            controllers: controllers.map(String::from).to_vec(),
            controller_manager_args: vec![],
        }
    }
}
