((attribute (attribute_name) @_id (quoted_attribute_value (attribute_value) @name)) @definition.anchor
  (#eq? @_id "id"))

((script_element (start_tag (attribute (attribute_name) @_src (quoted_attribute_value (attribute_value) @path))))
  @import.file
  (#eq? @_src "src"))
((start_tag (tag_name) @_link (attribute (attribute_name) @_href (quoted_attribute_value (attribute_value) @path)))
  @import.file
  (#eq? @_link "link")
  (#eq? @_href "href"))
((self_closing_tag
  (tag_name) @_link
  (attribute (attribute_name) @_href (quoted_attribute_value (attribute_value) @path)))
  @import.file
  (#eq? @_link "link")
  (#eq? @_href "href"))
