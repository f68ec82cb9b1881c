//! Words both planes share: xDS messages, SPIFFE identity, resource names, annotations.
