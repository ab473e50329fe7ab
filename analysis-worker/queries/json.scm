; The top level only: what lies deeper is data.
(document (object (pair key: (string) @name) @definition.key))
