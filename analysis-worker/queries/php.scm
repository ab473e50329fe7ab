(class_declaration name: (name) @name) @definition.class
(interface_declaration name: (name) @name) @definition.interface
(trait_declaration name: (name) @name) @definition.trait
(enum_declaration name: (name) @name) @definition.enum
(enum_case name: (name) @name) @definition.variant
(function_definition name: (name) @name) @definition.function
(method_declaration name: (name) @name) @definition.method
(property_declaration (property_element name: (variable_name (name) @name))) @definition.field
(const_declaration (const_element . (name) @name)) @definition.constant
(namespace_definition name: (namespace_name) @name) @definition.module
((function_call_expression
  function: (name) @_define
  arguments: (arguments . (argument (string (string_content) @name))))
  @definition.constant
  (#eq? @_define "define"))
(anonymous_function) @local
(arrow_function) @local

(namespace_use_declaration) @import.module
(require_expression [(string) (encapsed_string) (binary_expression right: (string))] @path) @import.file
(require_once_expression [(string) (encapsed_string) (binary_expression right: (string))] @path) @import.file
(include_expression [(string) (encapsed_string) (binary_expression right: (string))] @path) @import.file
(include_once_expression [(string) (encapsed_string) (binary_expression right: (string))] @path) @import.file

(function_call_expression function: (name) @name) @reference.call
(function_call_expression function: (qualified_name (name) @name)) @reference.call
(member_call_expression name: (name) @name) @reference.call
(nullsafe_member_call_expression name: (name) @name) @reference.call
(scoped_call_expression name: (name) @name) @reference.call
(object_creation_expression (name) @name) @reference.call
(object_creation_expression (qualified_name (name) @name)) @reference.call
(named_type (name) @reference.type)
(named_type (qualified_name (name) @reference.type))
(use_declaration (name) @reference.type)
(base_clause (name) @reference.type)
(class_interface_clause (name) @reference.type)

(comment) @comment
