(function_definition name: (word) @name) @definition.function
(program (variable_assignment name: (variable_name) @name) @definition.variable)
(declaration_command (variable_assignment name: (variable_name) @name)) @definition.variable

((command name: (command_name (word) @_source) . argument: (_) @path) @import.file
  (#any-of? @_source "source" "."))

(command name: (command_name (word) @name)) @reference.call

(comment) @comment
